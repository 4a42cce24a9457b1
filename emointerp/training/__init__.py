"""How the bundled weights were made: `python -m emointerp.training --help`."""
