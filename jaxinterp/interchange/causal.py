"""Causal models: what a model is claimed to compute, as plain Python, and prompts that test it.

A causal model is a function ``f(inputs, **fixed)`` from the input variables by name to all
variables by name: the inputs, those in between, and ``output``. Any variable can be set by
keyword: it then has that value whatever it would be computed from, and what is computed from it
follows. `causal_model` makes such a function from one small function per variable.

    f = causal_model(same=lambda a, b: a == b, output=lambda same: "yes" if same else "no")

The counterfactual of a pair of inputs, for a variable: the output on the base input with the
variable set to its value on the source input (Geiger et al. 2021, arXiv:2106.02997).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.model import Tokens, as_tokens
from jaxinterp.results import fingerprint
from jaxinterp.tokens import Tokenizer

CausalModel = Callable[..., Mapping[str, Any]]
Inputs = Mapping[str, Any]

TRIES = 1000  # pairs drawn for one that is wanted


def causal_model(**mechanisms: Callable[..., Any]) -> CausalModel:
    """A causal model from one function per variable, in the order in which they are computed.

    The parameters of a function name the variables it reads.

    >>> f = causal_model(left=lambda a, b: a + b, output=lambda left, c: left + c)
    >>> f({"a": 1, "b": 2, "c": 3}, left=10)["output"]
    13

    The model raises ``ValueError`` for a variable that is read before it is computed, and for
    one set by keyword that there is none of.
    """
    reads = {name: tuple(inspect.signature(m).parameters) for name, m in mechanisms.items()}

    def model(inputs: Inputs, **fixed: Any) -> dict[str, Any]:
        unknown = fixed.keys() - inputs.keys() - mechanisms.keys()
        if unknown:
            raise ValueError(
                f"The causal model has no variable {sorted(unknown)[0]!r}: it has "
                f"{', '.join([*inputs, *mechanisms])}."
            )
        values = {**inputs, **fixed}
        for name, mechanism in mechanisms.items():
            if name in fixed:
                continue
            for parent in reads[name]:
                if parent not in values:
                    raise ValueError(
                        f"{name!r} reads {parent!r}, which is neither an input nor computed before."
                    )
            values[name] = mechanism(*(values[parent] for parent in reads[name]))
        return values

    return model


def counterfactual(
    f: CausalModel,
    base: Inputs,
    source: Inputs,
    variable: str | Sequence[str],
    output: str = "output",
) -> Any:
    """The output of a causal model on ``base`` with a variable as it is on ``source``.

    variable: one name, or several that are set together.

    Raises ``ValueError`` for a variable or an output that the causal model does not return, and
    for one that does not keep the value it is set to.
    """
    names = variables_of(variable)
    values = f(source)
    for name in (*names, output):
        if name not in values:
            raise ValueError(
                f"The causal model returns no variable {name!r}: it returns {', '.join(values)}."
            )
    held = {name: values[name] for name in names}
    result = f(base, **held)
    for name, value in held.items():
        if result[name] is not value and not np.array_equal(result[name], value):
            raise ValueError(
                f"The causal model was given {name}={value!r} and returned {result[name]!r}: a "
                "variable set by keyword keeps that value (causal_model(...) sees to it)."
            )
    return result[output]


def variables_of(variable: str | Sequence[str]) -> tuple[str, ...]:
    """Names of variables that are set together."""
    return (variable,) if isinstance(variable, str) else tuple(variable)


@dataclasses.dataclass(frozen=True, eq=False)
class InterchangeTask:
    """Base and source prompts, and what the model should say when a variable is exchanged.

    labels [n]: token ids of the counterfactual outputs. base_labels, source_labels [n]: those of
    the outputs as they are. choices [m]: token ids of all outputs there are (None: the whole
    vocabulary). base_roles, source_roles: positions [n] by name. base_inputs, source_inputs: the
    causal model's inputs.
    """

    variable: tuple[str, ...]
    base: Tokens
    source: Tokens
    labels: np.ndarray
    base_labels: np.ndarray
    source_labels: np.ndarray
    choices: np.ndarray | None
    base_roles: Mapping[str, np.ndarray]
    source_roles: Mapping[str, np.ndarray]
    base_inputs: tuple[Inputs, ...]
    source_inputs: tuple[Inputs, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.base)

    @property
    def changed(self) -> np.ndarray:
        """bool [n]: whether the exchange changes the output."""
        return self.labels != self.base_labels

    @property
    def arguments(self) -> dict[str, Any]:
        """What `train_das`, `sweep_das` and `interchange_accuracy` take of it."""
        return {
            "base": self.base, "source": self.source, "labels": self.labels,
            "choices": self.choices,
        }  # fmt: skip

    def record(self) -> dict[str, Any]:
        """What was tested on, for the claim of a result (JSON-able)."""
        return {
            "variable": list(self.variable),
            "n_pairs": len(self),
            "changed": int(self.changed.sum()),
            "task_seed": self.seed,
            "pairs": fingerprint(self.base, self.source, self.labels),
        }


def interchange_task(
    f: CausalModel,
    sample: Callable[[np.random.Generator], Inputs],
    *,
    variable: str | Sequence[str],
    n: int,
    prompt: Callable[[Inputs], Any],
    answer: Callable[[Any], Any],
    outputs: Sequence[Any] | None = None,
    roles: Callable[[Inputs], Mapping[str, int]] | None = None,
    tokenizer: Tokenizer | None = None,
    changed: float | None = 0.5,
    output: str = "output",
    seed: int = 0,
) -> InterchangeTask:
    """n pairs of prompts with the counterfactual outputs of a causal model.

    sample: draws inputs. prompt: inputs to a text (with ``tokenizer``) or token ids. answer: an
    output to its token id, or with ``tokenizer`` to a text of one token. outputs: all outputs
    there are, if the model is to choose among them. roles: inputs to positions by name.

    changed: the share of pairs whose counterfactual output differs from the base's (None: as
    drawn). A pair that it does not change is answered rightly by changing nothing at all.

    Raises ``ValueError`` as `counterfactual` does, and where no pairs of a wanted kind come up.
    """
    n, seed = whole_number("n", n, 1, MANY), random_seed(seed)
    changed = real_number("changed", changed, least=0, most=1, optional=True)
    rng = np.random.default_rng(seed)
    wanted = None if changed is None else rng.permutation(np.arange(n) < round(changed * n))
    pairs: list[tuple[Inputs, Inputs, Any]] = []
    for row in range(n):
        want = None if wanted is None else bool(wanted[row])
        pairs.append(_pair(f, sample, rng, variable, output, want))

    def token(value: Any) -> int:
        said = answer(value)
        if not isinstance(said, str):
            return int(said)
        if tokenizer is None:
            raise ValueError(f"answer gives {said!r}: pass tokenizer=, or give a token id.")
        return tokenizer.single_token(said)

    base, source, results = zip(*pairs, strict=True)
    return InterchangeTask(
        variable=variables_of(variable),
        base=_tokens([prompt(each) for each in base], tokenizer),
        source=_tokens([prompt(each) for each in source], tokenizer),
        labels=np.array([token(each) for each in results]),
        base_labels=np.array([token(f(each)[output]) for each in base]),
        source_labels=np.array([token(f(each)[output]) for each in source]),
        choices=None if outputs is None else np.array([token(each) for each in outputs]),
        base_roles=_roles(roles, base),
        source_roles=_roles(roles, source),
        base_inputs=base,
        source_inputs=source,
        seed=seed,
    )


def _pair(
    f: CausalModel, sample: Callable[[np.random.Generator], Inputs], rng: np.random.Generator,
    variable: str | Sequence[str], output: str, want: bool | None,
) -> tuple[Inputs, Inputs, Any]:  # fmt: skip
    """Base and source inputs and their counterfactual; ``want``: whether it is to be a change."""
    for _ in range(TRIES):
        base, source = sample(rng), sample(rng)
        result = counterfactual(f, base, source, variable, output)
        if want is None or np.array_equal(result, f(base)[output]) != want:
            return base, source, result
    what = "differs from" if want else "is"
    raise ValueError(
        f"Of {TRIES} pairs drawn, none has a counterfactual output that {what} the base's, with "
        f"{variable} exchanged: draw inputs of more kinds, or set changed=None."
    )


def _tokens(prompts: list[Any], tokenizer: Tokenizer | None) -> Tokens:
    """Texts or lists of token ids as one batch, padded on the right."""
    if isinstance(prompts[0], str):
        if tokenizer is None:
            raise ValueError("prompt gives texts: pass tokenizer=, or give token ids.")
        return tokenizer(prompts)
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), np.int32)
    positions = np.full_like(ids, -1)
    for row, own in enumerate(prompts):
        ids[row, : len(own)], positions[row, : len(own)] = own, np.arange(len(own))
    return as_tokens(Tokens(ids, positions))


def _roles(
    roles: Callable[[Inputs], Mapping[str, int]] | None, inputs: Sequence[Inputs]
) -> dict[str, np.ndarray]:
    if roles is None:
        return {}
    found = [roles(each) for each in inputs]
    return {name: np.array([each[name] for each in found], np.int32) for name in found[0]}
