"""Tasks: clean and corrupted prompts, what to measure on them, and where things stand."""

from collections.abc import Callable
from typing import Any

from jaxinterp.tasks.ioi import ioi
from jaxinterp.tasks.task import Task, check
from jaxinterp.tokens import Tokenizer

TASKS: dict[str, Callable[..., Task]] = {"ioi": ioi}


def make(name: str, tokenizer: Tokenizer, **options: Any) -> Task:
    """The task of that name; ``options`` are its own.

    Raises ``ValueError`` for a name that is not a task.
    """
    if name not in TASKS:
        raise ValueError(f"{name!r} is not a task. Tasks are {', '.join(TASKS)}.")
    return TASKS[name](tokenizer, **options)


__all__ = ["TASKS", "Task", "check", "ioi", "make"]
