"""The command line: ``jaxinterp patch | models | fetch``."""

from jaxinterp.cli.main import main

__all__ = ["main"]
