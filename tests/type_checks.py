"""The decorator that checks types under pytest: beartype, with an int accepted where a float is named (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
