"""What every task is: pairs of prompts that differ in one respect, and a metric of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinterp.metrics import Metric, accuracy, evaluate, of_prompts
from jaxinterp.model import Model, Tokens


@dataclasses.dataclass(frozen=True)
class Task:
    """Clean and corrupted prompts, token by token aligned, and the metric that tells them apart.

    clean, corrupted: `Tokens` of n prompts. metric: by default of ``answers`` against
    ``wrong``, the token ids right and wrong for the clean prompts: [n], or sets [n k] filled up
    with -1. roles: each role's
    position [n] within its prompt, the same in both. prompts: more about each prompt, arrays
    or lists of length n (coordinates for results). meta: about the whole task, JSON-able.

    Raises ``ValueError`` when the two sides, or anything per prompt, do not match.
    """

    name: str
    clean: Tokens
    corrupted: Tokens
    metric: Metric
    answers: np.ndarray
    wrong: np.ndarray
    roles: Mapping[str, np.ndarray]
    clean_text: tuple[str, ...]
    corrupted_text: tuple[str, ...]
    seed: int | None = None
    corruption: str = ""
    prompts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n, lengths = len(self.clean), np.asarray(self.clean.lengths)
        per_prompt = {
            "corrupted": self.corrupted.ids, "answers": self.answers, "wrong": self.wrong,
            "clean_text": self.clean_text, "corrupted_text": self.corrupted_text,
            **self.roles, **self.prompts,
        }  # fmt: skip
        for field, values in per_prompt.items():
            if len(values) != n:
                raise ValueError(f"{field} has {len(values)} entries for {n} clean prompts.")
        if not np.array_equal(self.clean.positions, self.corrupted.positions):
            raise ValueError(
                "Clean and corrupted prompts differ in length or padding: a task needs twins "
                "that match token by token."
            )
        for role, at in self.roles.items():
            if (at < 0).any() or (at >= lengths).any():
                raise ValueError(f"Role {role} lies outside some prompts: positions {at.tolist()}.")

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: Any) -> Task:
        """Some of the prompts, by an int (a task of one), slice, indices or mask.

        Raises ``IndexError`` for prompts that do not exist, and ``ValueError`` where none is left.
        """
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"prompt {index} of a task of {len(self)}.")
            index = [int(index) % len(self)]
        rows = np.arange(len(self))[index]
        if not len(rows):
            raise ValueError("No prompts are left: a task holds at least one.")

        def pick(values: Any) -> Any:
            return tuple(values[i] for i in rows)

        return dataclasses.replace(
            self,
            clean=self.clean[rows],
            corrupted=self.corrupted[rows],
            metric=of_prompts(self.metric, rows),
            answers=self.answers[rows],
            wrong=self.wrong[rows],
            roles={k: v[rows] for k, v in self.roles.items()},
            clean_text=pick(self.clean_text),
            corrupted_text=pick(self.corrupted_text),
            prompts={k: np.asarray(v)[rows] for k, v in self.prompts.items()},
            meta={**self.meta, "rows": [self._rows()[i] for i in rows]},
        )

    def _rows(self) -> list[int]:
        """Which prompts of the task as it was made these are."""
        return self.meta.get("rows", list(range(len(self))))

    @property
    def equal_length(self) -> bool:
        """Whether all prompts have the same number of tokens, so that positions align."""
        return bool((np.asarray(self.clean.lengths) == self.clean.lengths[0]).all())

    def labels(self) -> list[str]:
        """For each position, the roles that stand there in every prompt ("" if none)."""
        out = [""] * self.clean.shape[1]
        for role, at in self.roles.items():
            if (at == at[0]).all():
                out[at[0]] = f"{out[at[0]]}, {role}" if out[at[0]] else role
        return out

    def record(self) -> dict[str, Any]:
        """What it takes to make the same prompts again, and a hash that proves it (JSON-able)."""
        digest = hashlib.sha256()
        for tokens in (self.clean, self.corrupted):
            for array in (tokens.ids, tokens.positions):
                digest.update(np.ascontiguousarray(array, np.int64).tobytes())
            if tokens.values is not None:
                digest.update(np.ascontiguousarray(tokens.values, np.float32).tobytes())
        return {
            "name": self.name,
            "n_prompts": len(self),
            "seed": self.seed,
            "corruption": self.corruption,
            "equal_length": self.equal_length,
            "length": int(np.max(self.clean.lengths)),
            "roles": list(self.roles),
            "metric": self.metric.name,
            "sha256": digest.hexdigest(),
            **self.meta,
        }


def check(model: Model, task: Task) -> dict[str, float]:
    """Whether the model can do the task at all, and whether the corruption undoes it.

    Means over prompts, clean and corrupted: of the task's metric; of its accuracy (the model's
    top token, where the metric reads, is the answer, or in the set of answers); and how often the
    metric is above 0: the answer beats the wrong token. All are about the clean prompt's answer,
    so corrupted values ought to be low.
    """
    answers = [ids[ids >= 0] for ids in task.answers.reshape(len(task), -1)]
    top = accuracy(answers, np.asarray(task.metric.read(task.clean)))
    out: dict[str, float] = {}
    for side, tokens in {"clean": task.clean, "corrupted": task.corrupted}.items():
        values = np.asarray(evaluate(task.metric, model, tokens))
        out[f"{side}_{task.metric.name}"] = float(values.mean())
        out[f"{side}_accuracy"] = float(np.mean(evaluate(top, model, tokens)))
        out[f"{side}_preferred"] = float((values > 0).mean())
    return out
