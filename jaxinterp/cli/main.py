"""Entry point: parse, run, and turn bad input into one clear sentence."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from jaxinterp.cli.streams import steady

# What a person can cause and mend; anything else is a bug and shows its traceback.
MENDABLE = (ValueError, TypeError, OSError, ImportError, KeyError, MemoryError)


_STOPPED: list[int] = []  # the signals that asked this process to end


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 2 for what a person can mend, 130 when interrupted.

    Whatever becomes of the terminal or the pipe that it prints to, files are written.
    """
    with steady() as stdout:
        code = _command(argv)
        stdout.flush()
        if stdout.lost is not None and not isinstance(stdout.lost, BrokenPipeError):
            return code or _complain(
                f"What is printed was lost ({stdout.lost}); the files are written."
            )
        return code


def _command(argv: Sequence[str] | None) -> int:
    try:
        import tyro

        tyro.cli(
            _choice(_commands()),
            prog="jaxinterp",
            description="Mechanistic interpretability of transformers in JAX.",
            args=argv,
        )
    except KeyboardInterrupt:
        return _interrupted()
    except (*MENDABLE, RuntimeError) as error:
        if _STOPPED:  # on its way through a library the interruption became another error
            return _interrupted()
        if os.environ.get("JAXINTERP_DEBUG"):
            raise
        if isinstance(error, MENDABLE):
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            return _complain(text or type(error).__name__)
        # JAX has no class of its own for a device whose memory is full.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).splitlines()[0]
        return _complain(f"The device is out of memory ({text}): give a smaller --batch.")
    return 0


def _interrupted() -> int:
    print(
        "jaxinterp: interrupted; the same command goes on where it was, or begins again.",
        file=sys.stderr,
    )
    return 128 + (_STOPPED[0] if _STOPPED else signal.SIGINT)


def _commands() -> dict[str, Any]:
    """Functions by name; a group of commands has a sentence and its own."""
    from jaxinterp.cli import circuits, commands, dictionaries, reading, training

    return {
        "patch": commands.patch,
        "ablate": commands.ablate,
        "attribute": commands.attribute,
        "edges": circuits.edges,
        "paths": circuits.paths,
        "discover": circuits.discover,
        "evaluate": circuits.evaluate,
        "lens": reading.lens,
        "dla": reading.dla,
        "heads": reading.heads,
        "neurons": reading.neurons,
        "probe": reading.probe,
        "steer": reading.steer,
        "sae": (
            "Sparse dictionaries: train, evaluate, describe and convert them.",
            {
                "train": training.train,
                "evaluate": dictionaries.evaluate,
                "dashboard": dictionaries.dashboard,
                "convert": dictionaries.convert,
            },
        ),
        "models": commands.models,
        "fetch": commands.fetch,
    }


def _choice(commands: Mapping[str, Any]) -> Any:
    """A type of which tyro makes subcommands, of groups too (its own helper's are flat)."""
    import tyro

    def one(name: str, command: Callable[..., Any] | tuple[str, Mapping[str, Any]]) -> Any:
        if not isinstance(command, tuple):
            return Annotated[Any, tyro.conf.subcommand(name, constructor=command)]
        sentence, group = command
        made = _choice(group)
        return Annotated[
            Any,
            tyro.conf.subcommand(name, description=sentence, constructor_factory=lambda: made),
        ]

    return functools.reduce(operator.or_, (one(*item) for item in commands.items()))


def _complain(text: str) -> int:
    print(f"jaxinterp: {' '.join(text.split())}", file=sys.stderr)
    return 2


def run() -> None:
    """The console script.

    It ends by ``os._exit``: threads of JAX that still compute crash in a regular end of Python.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if not os.environ.get("JAXINTERP_DEBUG"):
        import absl.logging

        # Threads of orbax log, with a traceback, the errors that they hand on.
        absl.logging.set_verbosity(absl.logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _swallowed
    threading.excepthook = _thread_failed
    code = 1
    try:
        code = main()
    except KeyboardInterrupt:  # before the command began, or after its end
        code = _interrupted()
    except SystemExit as end:  # of the parser
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _stop(number: int, frame: Any) -> None:
    """Asked to end, a command cleans up; asked again, it ends at once."""
    _STOPPED.append(number)
    if len(_STOPPED) > 1:
        os._exit(128 + number)
    raise KeyboardInterrupt


def _swallowed(found: Any) -> None:
    """An interruption that fell into a callback of Python's collector comes again in a moment."""
    if not (_STOPPED and isinstance(found.exc_value, KeyboardInterrupt)):
        if os.environ.get("JAXINTERP_DEBUG"):
            sys.__unraisablehook__(found)
    elif hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _again)
        signal.setitimer(signal.ITIMER_REAL, 0.02)


def _again(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _thread_failed(found: threading.ExceptHookArgs) -> None:
    """A library's thread hands its error on to the main one: a line is enough beside that."""
    if os.environ.get("JAXINTERP_DEBUG"):
        threading.__excepthook__(found)
    else:
        lines = str(found.exc_value).splitlines() or [found.exc_type.__name__]
        print(f"A thread failed: {lines[0]:.200}", file=sys.stderr)
