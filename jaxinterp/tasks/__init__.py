"""Tasks: clean and corrupted prompts, what to measure on them, and where things stand."""

from collections.abc import Callable
from typing import Any

from jaxinterp.tasks.docstring import docstring
from jaxinterp.tasks.factual_recall import factual_recall
from jaxinterp.tasks.gendered_pronouns import gendered_pronouns
from jaxinterp.tasks.greater_than import greater_than
from jaxinterp.tasks.induction import induction
from jaxinterp.tasks.ioi import ioi
from jaxinterp.tasks.multiple_choice import multiple_choice
from jaxinterp.tasks.subject_verb import subject_verb_agreement
from jaxinterp.tasks.task import Task, check
from jaxinterp.tokens import Tokenizer

TASKS: dict[str, Callable[..., Task]] = {
    make.__name__: make
    for make in (
        ioi, greater_than, docstring, induction, gendered_pronouns, subject_verb_agreement,
        factual_recall, multiple_choice,
    )
}  # fmt: skip


def make(name: str, tokenizer: Tokenizer, **options: Any) -> Task:
    """The task of that name; ``options`` are its own.

    Raises ``ValueError`` for a name that is not a task.
    """
    if name not in TASKS:
        raise ValueError(f"{name!r} is not a task. Tasks are {', '.join(TASKS)}.")
    return TASKS[name](tokenizer, **options)


__all__ = [
    "TASKS", "Task", "check", "docstring", "factual_recall", "gendered_pronouns", "greater_than",
    "induction", "ioi", "make", "multiple_choice", "subject_verb_agreement",
]  # fmt: skip
