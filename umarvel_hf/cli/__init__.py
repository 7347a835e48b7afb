"""The command ``umarvel``: one verb, one function of the library; an option is a parameter of that function."""

from umarvel_hf.cli.command import main

__all__ = ["main"]
