"""What pages share: the template that they stand on, where they were made, and numbers as JSON has them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape

from emointerp.models import VLM
from emointerp.statistics import Interval


def rendered(template: str, packages: Sequence[str] = ("emointerp.tour",), **values: Any) -> str:
    """A page as HTML, everything escaped but what a template marks as safe; templates are looked for in packages, in order."""
    loader = ChoiceLoader([PackageLoader(package) for package in packages])
    environment = Environment(loader=loader, autoescape=select_autoescape(default=True, default_for_string=True))
    return environment.get_template(template).render(**values)


def machine(vlm: VLM) -> str:
    """On what a model ran, in words."""
    if vlm.device.type == "cuda":
        return torch.cuda.get_device_name(vlm.device)
    threads = torch.get_num_threads()
    return f"{threads} CPU threads" if threads > 1 else "one CPU thread"


def plain(value: Any) -> Any:
    """As JSON has it: numbers rounded, intervals as objects, and null for what is no number."""
    if isinstance(value, Interval):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
