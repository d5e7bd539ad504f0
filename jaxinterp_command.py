"""The console script. It listens to Ctrl-C before the package is imported, which takes seconds."""

import os
import signal
from typing import Any


def run() -> None:
    """Import the package and run a command, which listens itself from then on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from jaxinterp.cli.main import run as command

    command()


def _stop(number: int, frame: Any) -> None:
    """Nothing is written yet: an end at once leaves nothing half done."""
    os.write(2, b"jaxinterp: interrupted; the same command resumes.\n")
    os._exit(128 + number)
