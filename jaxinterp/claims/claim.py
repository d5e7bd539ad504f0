"""A claim about a mechanism as a value: interventions, what they did, and what was not shown."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.claims.experiment import Experiment, Found, measure
from jaxinterp.claims.needs import Needs, check_record, config_of, needs_of
from jaxinterp.claims.plain import from_plain, read_arrays, to_plain
from jaxinterp.files import whole
from jaxinterp.loading import load
from jaxinterp.model import Model
from jaxinterp.reading import JSON_BYTES, LoadError, damage_refused, parse_json, regular_file
from jaxinterp.results import claim as record_of
from jaxinterp.results import weights_digest

FORMAT = 1
MOST_DRAWN = 1 << 25  # resamples times prompts of a claim that is read from JSON,
MOST_VALUES = 1_000_000  # and values of an experiment


@dataclasses.dataclass(frozen=True, eq=False)
class Claim:
    """A statement about a mechanism together with the experiments that bear it out.

    >>> claim = Claim(
    ...     "Head 1.4 moves the name.", model, task=task, components=["layer 1, head 4"],
    ...     experiments=[
    ...         Experiment("zero the head", "effect", task.clean, edit, task.metric),
    ...         Experiment("zero another", "control", task.clean,
    ...                    random_components(edit, model.config), task.metric, grid=True),
    ...     ],
    ...     limits=["Other templates were not tried."],
    ... ).run(model)                                                      # doctest: +SKIP
    >>> print(claim.text())                                               # doctest: +SKIP

    model: a `Model`, kept as its record (`jaxinterp.results.claim`): name, revision, hash of the
    weights. task: a `Task` or words. dataset: where the prompts are from. components: what the
    claim is about, in words. limits: what was not shown. absent: that the mechanism is not there;
    the effects are then the measurements that found none. source, revision: what
    `jaxinterp.load` takes to load the model, by default its name (and commit of the hub). recipe:
    the command that made the claim, and what it took.
    level, resamples, seed: of the bootstrap intervals.

    ``run`` measures. ``text``, ``html``, ``to_json`` and ``save`` state the claim, and raise
    ``ValueError`` unless it has been run, has an effect (a causal test), a control or a test of
    specificity, and limits; and when the effects contradict it: a mechanism is claimed and no
    effect's interval is clear of 0, or its absence and one is.

    ``from_json(text).rerun()`` loads the model and measures all again; what that takes is told by
    ``needs``, and nothing is downloaded without ``rerun(fetch=True)``.
    """

    statement: str
    model: Any
    task: Any = ""
    dataset: str = ""
    components: tuple[str, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    limits: tuple[str, ...] = ()
    absent: bool = False
    source: str = ""
    revision: str = ""
    recipe: str = ""
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0
    agreement: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.statement.strip():
            raise ValueError("The claim says nothing: give its statement as a sentence.")
        real_number("level", self.level, above=0, below=1)
        whole_number("resamples", self.resamples, 1, MANY)
        random_seed(self.seed)
        for field in ("components", "limits"):
            given = getattr(self, field)
            given = (given,) if isinstance(given, str) else given
            object.__setattr__(self, field, tuple(str(x) for x in given if str(x).strip()))
        given = self.experiments
        experiments = (given,) if isinstance(given, Experiment) else tuple(given)
        names = [e.name for e in experiments]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Two experiments are called {twice[0]!r}: give each its own name.")
        object.__setattr__(self, "experiments", experiments)
        task = self.task.record() if hasattr(self.task, "record") else self.task
        object.__setattr__(self, "task", json.loads(json.dumps(task, default=str)))
        model = record_of(self.model) if isinstance(self.model, Model) else self.model
        object.__setattr__(self, "model", MappingProxyType(dict(model)))
        if self.agreement is not None:
            object.__setattr__(self, "agreement", MappingProxyType(dict(self.agreement)))

    def of_role(self, *roles: str) -> tuple[Experiment, ...]:
        """The experiments of some roles, in order."""
        return tuple(e for e in self.experiments if e.role in roles)

    def __getitem__(self, name: str) -> Experiment:
        """An experiment by its name. Raises ``KeyError`` for one that is not there."""
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise KeyError(f"{name!r}: the claim has {', '.join(e.name for e in self.experiments)}.")

    def run(self, model: Model) -> Claim:
        """The claim with what every experiment gives on its model.

        Raises ``ValueError`` for another model, by its weights and architecture, and as
        `jaxinterp.sweep` does.
        """
        digest, expected = weights_digest(model), self.model["weights"]
        if digest != expected:
            raise ValueError(
                f"The weights of {model.name} have the hash {digest}, the claim is about "
                f"{self.model['model']} with {expected}: it is another model, or its weights were "
                "changed."
            )
        if model.config != config_of(self.model):
            raise ValueError(f"The config of {model.name} is not that of the claim's model.")
        with_results = tuple(
            measure(e, model, level=self.level, resamples=self.resamples, seed=self.seed)
            for e in self.experiments
        )
        return dataclasses.replace(
            self, experiments=with_results, model=record_of(model), agreement=None
        )

    def needs(self) -> Needs:
        """What `rerun` would load, fetch and compute; its text says so in a sentence.

        Nothing is fetched, and of local files no more than the names and the headers is looked at.
        Raises `jaxinterp.loading.LoadError` where the claim's record of its model is no record, or
        its source no path that there can be.
        """
        return needs_of(self)

    def rerun(self, model: Model | None = None, *, fetch: bool = False) -> Claim:
        """Load the model, check its weights, and measure everything again.

        The new claim's ``agreement`` has the largest difference to the old values by experiment:
        0 on the same machine with the same versions. model: for one that `jaxinterp.load` does
        not return as it was (norms folded, for example). fetch: allows a model to be downloaded;
        `needs` tells beforehand which, and how large it is.

        Raises ``ValueError`` as `run` does, before the first run, and where a model would have to
        be downloaded without ``fetch``; `LoadError` when the model cannot be loaded.
        """
        before = {e.name: e.results for e in self.experiments}
        again = self.run(self._load(fetch) if model is None else model)
        gaps = {e.name: _gap(e.results, before[e.name]) for e in again.experiments}
        return dataclasses.replace(again, agreement=gaps)

    def _load(self, fetch: bool) -> Model:
        said, needs = self.model, self.needs()
        if needs.place == "nowhere":
            raise ValueError(
                f"{said['model']} was not loaded from anywhere: give rerun(model), or save the "
                "model and name its folder as the claim's source."
            )
        if needs.fetches and not fetch:
            raise ValueError(
                f"This claim fetches its model. {needs} Allow it with rerun(fetch=True), or give "
                "a model that you have: rerun(model)."
            )
        model, _ = load(needs.model, dtype=jnp.dtype(said["dtype"]), revision=needs.revision)
        return model.replace(config=model.config.replace(precision=said["precision"]))

    def lacking(self) -> list[str]:
        """What keeps the claim from being stated, each with the remedy; empty if nothing."""
        effects, out = self.of_role("effect"), []
        if not effects:
            out.append(
                "it has no causal test: add Experiment(name, 'effect', tokens, intervention, "
                "metric)"
            )
        if not self.of_role("control", "specificity"):
            out.append(
                "nothing stands beside its effect: add an Experiment of role 'control' (see "
                "random_components) or 'specificity'"
            )
        if not self.limits:
            out.append("it names no limits: say in limits= what was not shown")
        unrun = [e.name for e in self.experiments if e.found is None]
        if unrun:
            out.append(f"{unrun[0]!r} has not been run: claim = claim.run(model)")
        elif effects:
            out += self._contradictions(effects)
        return out

    def _contradictions(self, effects: tuple[Experiment, ...]) -> list[str]:
        shown = [e.name for e in effects if "changed" in e.verdicts()]
        if self.absent and shown:
            return [
                f"it says that something is absent, and {shown[0]!r} shows an effect: claim that, "
                "or give the experiment the margin below which a change counts as none"
            ]
        if not self.absent and not shown:
            return [
                "none of its effects is clear of 0: claim absence (absent=True), or measure more "
                "prompts"
            ]
        return []

    def _stated(self) -> None:
        lacking = self.lacking()
        if lacking:
            raise ValueError(f"The claim cannot be stated: {'; '.join(lacking)}.")

    def text(self) -> str:
        """The claim for a terminal. Raises ``ValueError`` while it cannot be stated."""
        from jaxinterp.claims.rendering import text_of

        self._stated()
        return text_of(self)

    def html(self) -> str:
        """The claim as one page that needs no network. Raises as `text`."""
        from jaxinterp.claims.rendering import page_of

        self._stated()
        return page_of(self)

    def to_json(self) -> str:
        """The claim with everything it takes to run it again. Raises as `text`.

        Prompts, interventions and metrics are exact (arrays in base64); values are numbers.
        """
        self._stated()
        arrays: dict[str, Any] = {}
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["model"] = dict(self.model)
        plain["experiments"] = [_experiment_to_plain(e, arrays) for e in self.experiments]
        plain["agreement"] = None if self.agreement is None else dict(self.agreement)
        return json.dumps(
            {"claim": FORMAT, **plain, "arrays": arrays}, indent=1, allow_nan=False,
            ensure_ascii=False,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Claim:
        """The claim in a .json file that `save` wrote; see `from_json`.

        Raises ``FileNotFoundError``, and `jaxinterp.loading.LoadError` as `from_json` does.
        """
        data = regular_file(path, JSON_BYTES).read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LoadError(
                f"{path} is no text in UTF-8 ({error}). Save the claim anew."
            ) from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """The claim that `to_json` wrote; intervals are computed anew from the values.

        No model is loaded or fetched: `needs` tells what running it again takes.

        Raises `jaxinterp.loading.LoadError` for other text, another format, or changed arrays.
        """
        if len(text) > JSON_BYTES:
            raise LoadError(f"The JSON of a claim has {len(text)} letters, at most {JSON_BYTES}.")
        try:
            given = parse_json(text, "The text")
        except LoadError as error:
            raise LoadError(f"This is not the JSON of a claim: {error}") from error
        found = given.get("claim") if isinstance(given, dict) else None
        if type(found) is not int or found != FORMAT:
            raise LoadError(
                f"The claim has format {found!r:.80}, expected {FORMAT}: state it anew."
            )
        with damage_refused("The text", "the JSON of a claim", "State the claim anew."):
            try:
                return cls._from_plain(given)
            except (KeyError, TypeError, AttributeError) as error:
                raise LoadError(f"The JSON of the claim lacks something: {error!r:.200}") from error

    @classmethod
    def _from_plain(cls, given: dict[str, Any]) -> Claim:
        """The claim of a JSON object; whatever is wrong with it raises errors of many kinds."""
        check_record(given["model"])
        for field in ("statement", "dataset", "source", "revision", "recipe"):
            if not isinstance(given[field], str):
                raise ValueError(f"its {field} is {given[field]!r:.60}, expected text")
        if not isinstance(given["absent"], bool):
            raise ValueError(f"absent is {given['absent']!r:.60}, expected true or false")
        arrays = read_arrays(given.pop("arrays"))
        if not isinstance(given["experiments"], list):
            raise ValueError("its experiments are no list")
        experiments = [_experiment_from_plain(e, arrays) for e in given.pop("experiments")]
        del given["claim"]
        return cls(**given, experiments=tuple(experiments))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .json, .html or .txt, by the name's ending; whole or not at all.

        Raises ``ValueError`` as `text`, and for another ending.
        """
        path = Path(path)
        forms = {".json": self.to_json, ".html": self.html, ".txt": self.text}
        if path.suffix not in forms:
            raise ValueError(f"{path.name} ends in {path.suffix!r}: expected {', '.join(forms)}.")
        said = forms[path.suffix]()
        # UTF-8 has no bytes for a lone surrogate: JSON has an escape, which reads back as it was.
        # The text and the page show it by its number.
        errors = "backslashreplace" if path.suffix == ".json" else "strict"
        with whole(path) as temporary:
            temporary.write_text(said, encoding="utf-8", errors=errors)
        return path


def _gap(a: Found, b: Found) -> float:
    pairs = ((a.without, b.without), (a.values, b.values))
    return float(max(np.abs(x - y).max() for x, y in pairs))


INPUTS = ("tokens", "intervention", "metric")  # pytrees; the rest is plain


def _experiment_to_plain(experiment: Experiment, arrays: dict[str, Any]) -> dict[str, Any]:
    out = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
    out |= {name: to_plain(out[name], arrays) for name in INPUTS}
    found = experiment.results
    out["found"] = {
        "without": found.without.tolist(),
        "values": found.values.tolist(),
        "level": found.level, "resamples": found.resamples, "seed": found.seed,
        # For readers: computed again from the values when this is read.
        "estimate": found.estimate.tolist(), "low": found.low.tolist(),
        "high": found.high.tolist(), "p": None if found.p is None else found.p.tolist(),
    }  # fmt: skip
    return out


def _experiment_from_plain(plain: dict[str, Any], arrays: Mapping[str, Any]) -> Experiment:
    fields = {**plain, **{name: from_plain(plain[name], arrays) for name in INPUTS}}
    given = ("without", "values", "level", "resamples", "seed")
    found = {name: plain["found"][name] for name in given}
    values, without = (np.asarray(found[name], np.float64) for name in ("values", "without"))
    if not np.isfinite(values).all() or not np.isfinite(without).all():
        raise ValueError(f"the values of {plain['name']!r:.60} are not finite")
    resamples = whole_number("resamples", found["resamples"], 1)
    if values.size > MOST_VALUES or resamples * max(1, without.size) > MOST_DRAWN:
        raise ValueError(
            f"{plain['name']!r:.60} has {values.size} values and {resamples} resamples: more than "
            "are computed for a claim that is read"
        )
    fields["found"] = Found(**found)
    return Experiment(**fields)
