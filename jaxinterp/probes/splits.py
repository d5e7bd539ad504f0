"""Splits before anything is looked at: train, validation, test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxinterp.checks import MANY, numbers, random_seed, whole_number


@dataclasses.dataclass(frozen=True)
class Splits:
    """bool [S n] each: what a split trains on, chooses its penalty on, and is tested on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, split: int) -> Splits:
        """One of them."""
        return Splits(*(part[split, None] for part in (self.train, self.validation, self.test)))

    def check(self, labels: np.ndarray, groups: np.ndarray | None) -> None:
        """Refuse overlaps, groups on two sides, and training parts that lack a class."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, part in parts.items():
            if part.shape != (len(self), len(labels)) or part.dtype != bool:
                raise ValueError(
                    f"The {name} part is {part.dtype} {list(part.shape)}, expected bool "
                    f"[{len(self)}, {len(labels)}]."
                )
        if (self.train.astype(int) + self.validation + self.test > 1).any():
            raise ValueError("An example is in two parts of one split: parts must not overlap.")
        classes = np.unique(labels)
        for s in range(len(self)):
            for name, part in parts.items():
                if not part[s].any():
                    raise ValueError(f"Split {s} has no {name} examples: give more examples.")
            missing = np.setdiff1d(classes, labels[self.train[s]])
            if len(missing):
                raise ValueError(
                    f"Split {s} trains on no example of {missing[0].item()!r}: give more examples, "
                    "another seed, or fewer classes."
                )
            if groups is None:
                continue
            held = {name: set(groups[part[s]].tolist()) for name, part in parts.items()}
            for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
                if both := held[one] & held[other]:
                    raise ValueError(
                        f"Split {s} leaks: group {sorted(map(str, both))[0]} is in both {one} and "
                        f"{other}. Split by group (make_splits with groups=)."
                    )


def make_splits(
    labels: Any,
    *,
    groups: Any = None,
    n_splits: int = 5,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Splits:
    """Random splits; the parts keep the classes' shares, or keep groups whole.

    labels [n]. groups [n]: examples of one group (prompts about one person, say) stay together,
    and classes fall as they may. shares: of training, validation and test.

    Raises ``ValueError`` for one class, fewer than three examples of a class (or three groups),
    and a draw in which training lacks a class.
    """
    labels = np.asarray(labels)
    check_labels(labels)
    if len(numbers("shares", shares, above=0)) != 3:
        raise ValueError(f"shares={shares}, expected three positive numbers.")
    n_splits, seed = whole_number("n_splits", n_splits, 1, MANY), random_seed(seed)
    groups = None if groups is None else np.asarray(groups)
    if groups is not None and groups.shape != labels.shape:
        raise ValueError(f"There are {len(groups)} groups for {len(labels)} labels.")
    strata = labels if groups is None else np.zeros(len(labels), int)
    units = np.arange(len(labels)) if groups is None else groups
    parts = np.zeros((3, n_splits, len(labels)), bool)
    rng = np.random.default_rng(seed)
    for s in range(n_splits):
        for stratum in np.unique(strata):
            kinds = np.unique(units[strata == stratum])
            if len(kinds) < 3:
                what = "groups" if groups is not None else f"examples of {stratum.item()!r}"
                raise ValueError(f"There are {len(kinds)} {what}: three parts need at least 3.")
            order = rng.permutation(kinds)
            ends = np.cumsum(shares[:2]) / sum(shares) * len(order)
            first, second = (int(x) for x in ends.round())
            first = min(max(first, 1), len(order) - 2)
            second = min(max(second, first + 1), len(order) - 1)
            for part, chosen in zip(
                parts, (order[:first], order[first:second], order[second:]), strict=True
            ):
                part[s] |= (strata == stratum) & np.isin(units, chosen)
    splits = Splits(*parts)
    splits.check(labels, groups)
    return splits


def check_labels(labels: np.ndarray) -> np.ndarray:
    """The classes of labels [n]; there are at least two, and more examples than classes."""
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}, expected [n] whole numbers or text."
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        held = repr(classes[0].item()) if len(classes) else "missing"
        raise ValueError(f"All labels are {held}: a probe needs two classes or more.")
    if len(labels) <= len(classes):
        raise ValueError(
            f"There are {len(labels)} examples of {len(classes)} classes: give more of each."
        )
    return classes
