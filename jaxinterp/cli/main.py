"""Entry point: parse, run, and turn bad input into one clear sentence."""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

# What a person can cause and mend; anything else is a bug and shows its traceback.
MENDABLE = (ValueError, TypeError, OSError, ImportError, KeyError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (2 for bad input)."""
    import tyro

    try:
        tyro.cli(
            _choice(_commands()),
            prog="jaxinterp",
            description="Mechanistic interpretability of transformers in JAX.",
            args=argv,
        )
    except MENDABLE as error:
        if os.environ.get("JAXINTERP_DEBUG"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        return _complain(text or type(error).__name__)
    except KeyboardInterrupt:
        print("jaxinterp: interrupted; the same command resumes.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        # JAX has no class of its own for a device whose memory is full.
        if os.environ.get("JAXINTERP_DEBUG") or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).splitlines()[0]
        return _complain(f"The device is out of memory ({text}): give a smaller --batch.")
    return 0


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
    """The console script."""
    sys.exit(main())
