"""A claim about a model whose mechanism is known: its numbers, its refusals, its second run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.claims import Claim, Experiment, Found, random_components
from jaxinterp.claims.experiment import measure
from jaxinterp.handbuilt import previous_token_induction
from jaxinterp.results import weights_digest
from jaxinterp.stats import bootstrap, holm, paired_permutation

N = 12
EDIT = ji.zero("z", layer=1, head=0)  # the head that writes the answer
LIMITS = ["Prompts of other lengths were not tried."]


@functools.cache
def known():
    return previous_token_induction()


@functools.cache
def model():
    return jax.tree.map(jnp.asarray, known().model)


@functools.cache
def pairs():
    return known().make(N, 8)


def metric():
    return known().metric(pairs().answers, pairs().wrong)


def every_head():
    return ji.zero("z", **ji.product(layer=range(2), head=range(4)))


def experiments():
    clean = pairs().clean
    control = random_components(EDIT, model().config, draws=7, seed=3)
    texts = [known().alphabet.decode(row) for row in clean.ids]
    return (
        Experiment("zero the head", "effect", clean, EDIT, metric(), texts=texts),
        Experiment("random heads", "control", clean, control, metric(), grid=True),
        Experiment(
            "loss elsewhere", "specificity", clean, ji.zero("z", layer=1, head=2),
            ji.prob(pairs().answers), margin=0.05,
        ),
        Experiment("every head", "localization", clean, every_head(), metric(), grid=True),
    )  # fmt: skip


def unrun(**fields):
    given = {
        "task": "induction", "components": ["layer 1, head 0"], "experiments": experiments(),
        "limits": LIMITS, "resamples": 200, "seed": 5,
    }  # fmt: skip
    return Claim("Head 1.0 copies what followed.", model(), **{**given, **fields})


@functools.cache
def claim():
    return unrun().run(model())


def changed(value, name):
    """The claim with one of its experiments in another role, or without it."""
    found = [
        dataclasses.replace(e, role=value) if e.name == name else e for e in claim().experiments
    ]
    return dataclasses.replace(claim(), experiments=[e for e in found if e.role])


def only(*roles, **fields):
    return dataclasses.replace(claim(), experiments=claim().of_role(*roles), **fields)


def gap(edits=()):
    """The logit difference of the last position, from whole runs of the model."""
    logits = np.asarray(ji.forward(model(), pairs().clean, edits).logits)[:, -1]
    rows = np.arange(N)
    return logits[rows, pairs().answers] - logits[rows, pairs().wrong]


def test_values_are_those_of_whole_runs():
    effect, sites = claim()["zero the head"].found, claim()["every head"].found
    np.testing.assert_allclose(effect.without, gap(), rtol=1e-5)
    np.testing.assert_allclose(effect.values, gap(EDIT)[None], atol=1e-4)
    expected = [gap(ji.zero("z", layer=l, head=h)) for l in range(2) for h in range(4)]
    np.testing.assert_allclose(sites.values, expected, atol=1e-4)
    assert np.ptp(np.mean(expected, 1)) > 1


def test_intervals_are_those_of_stats():
    import xarray as xr

    for e in claim().experiments:
        found = e.found
        gaps = xr.DataArray(found.values - found.without, dims=("cell", "prompt"))
        np.testing.assert_allclose(found.estimate, gaps.mean("prompt"))
        for own, each in ((found.average, gaps.mean("cell").expand_dims("cell")), (None, gaps)):
            whole = bootstrap(each, n=200, seed=5)
            wanted = whole.low, whole.high
            given = (found.low, found.high) if own is None else own[1:]
            np.testing.assert_array_equal(np.ravel(given), np.ravel(wanted))
        if len(e) == 1:
            assert found.p is None
        else:
            np.testing.assert_array_equal(found.p, holm(paired_permutation(gaps, seed=5).p.values))


def test_localization_finds_the_true_heads_and_no_other():
    verdicts = np.reshape(claim()["every head"].verdicts(), (2, 4))
    assert np.argwhere(verdicts == "changed").tolist() == [[0, 0], [1, 0]]
    assert (verdicts == "unchanged").sum() == 6
    assert claim()["loss elsewhere"].verdicts() == ["unchanged"]


def test_the_text_says_what_was_measured():
    text = claim().text()
    found = claim()["zero the head"].found
    assert f"changes logit_diff by {found.estimate[0]:+.3g} [{found.low[0]:+.3g}, " in text
    flat = " ".join(text.split())
    assert "zero z at layer 1, head 0" in flat
    assert f"weights {weights_digest(model())}" in flat
    assert "200 resamples, seed 5" in flat
    assert "unchanged within 0.05: prob" in flat
    assert "2 of 8 change it" in flat
    control = claim()["random heads"].found
    as_far = (np.abs(control.estimate) >= np.abs(found.estimate[0])).sum()
    assert f"beside it, random heads: on average {control.average[0]:+.3g} [" in flat
    assert f"; {as_far} of 7 as far as 'zero the head'" in flat
    assert f"- {LIMITS[0]}" in text
    assert max(map(len, text.splitlines())) <= 98
    assert f"{N} prompts" in flat
    places = [line for line in text.splitlines() if line.startswith("    layer 1, head")]
    assert places[0].startswith("    layer 1, head 0: changes logit_diff")
    assert not any("changes" in line for line in places[1:])


def test_what_was_not_tested_is_said():
    assert "nothing was measured that should be left alone" in only("effect", "control").text()
    assert "no other intervention of the kind" in only("effect", "specificity").text()
    assert "no other components were searched" in only("effect", "specificity").text()
    broken = changed("specificity", "every head").text()
    assert "'every head' is not left alone" in " ".join(broken.split())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unrun, r"'zero the head' has not been run: claim = claim.run\(model\)"),
        (lambda: only("control", "localization"), "no causal test: add Experiment"),
        (lambda: only("effect", "localization"), "nothing stands beside.*random_components"),
        (lambda: dataclasses.replace(claim(), limits=[" "]), "names no limits: say in limits="),
        (lambda: dataclasses.replace(claim(), absent=True), "'zero the head' shows an effect"),
        (lambda: only("control", limits=()), "no causal test.*names no limits"),
    ],
)
def test_a_claim_without_its_tests_is_not_stated(make, message, tmp_path):
    given = make()
    ways = (given.text, given.html, given.to_json, lambda: given.save(tmp_path / "c.json"))
    for way in ways:
        with pytest.raises(ValueError, match=message):
            way()
    assert list(tmp_path.iterdir()) == []


def absence(**fields):
    none = Experiment("zero a copy", "effect", pairs().clean, ji.zero("z", layer=1, head=2),
                      metric(), **fields)  # fmt: skip
    return unrun(experiments=(none, experiments()[1]))


def test_no_effect_is_not_claimed_as_one():
    given = absence().run(model())
    with pytest.raises(ValueError, match=r"none of its effects is clear of 0.*absent=True"):
        given.text()
    text = dataclasses.replace(given, absent=True).text()
    assert text.startswith("Absent: ")
    assert "unchanged: logit_diff" in text
    effects = text[text.index("CAUSAL EFFECT") : text.index("CONTROLS")]
    assert "changes" not in effects


def test_an_interval_over_0_is_no_effect():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=N).astype(np.float32)
    shift = ji.add("resid_post", noise[:, None, None] * probe()[None, None], layer=1)
    e = Experiment("noise", "effect", pairs().clean, shift, metric())
    found = unrun(experiments=(e, experiments()[1]), absent=True).run(model())
    assert found["noise"].verdicts() == ["unclear"]
    assert found["noise"].found.low[0] < 0 < found["noise"].found.high[0]
    assert "no effect shown, the interval covers 0: logit_diff" in found.text()
    wide = dataclasses.replace(found["noise"], margin=1e6)
    assert wide.verdicts() == ["unchanged"]
    narrow = dataclasses.replace(claim()["zero the head"], margin=1e6)
    assert narrow.verdicts() == ["unchanged"]


def probe():
    return np.asarray(model().W_U[:, 1])


def test_chance_in_a_grid_is_no_effect():
    rng = np.random.default_rng(1)
    grid = ji.add("resid_post", rng.normal(size=(40, N, 1, 1)).astype(np.float32) * probe(),
                  layer=ji.Shared(1))  # fmt: skip
    e = Experiment("noise", "effect", pairs().clean, grid, metric(), grid=True)
    found = unrun(experiments=(e, experiments()[1])).run(model())["noise"]
    outside = (found.found.low > 0) | (found.found.high < 0)
    assert outside.any(), "by chance, some interval should lie beside 0"
    assert "changed" not in found.verdicts()


@functools.cache
def saved(folder):
    return ji.save(folder / "model", model())


def test_it_runs_again_from_its_json_to_the_same_numbers(tmp_path):
    path = saved(tmp_path)
    given = dataclasses.replace(claim(), source=str(path))
    file = given.save(tmp_path / "claim.json")
    again = Claim.from_json(file.read_text(encoding="utf-8")).rerun()
    assert dict(again.agreement) == dict.fromkeys([e.name for e in given.experiments], 0.0)
    for one, other in zip(given.experiments, again.experiments, strict=True):
        for field in ("without", "values", "estimate", "low", "high"):
            a, b = (getattr(e.found, field) for e in (one, other))
            np.testing.assert_array_equal(a, b)
    stated = json.loads(given.to_json())
    assert json.loads(again.to_json()) == {**stated, "agreement": dict(again.agreement)}
    assert "the largest difference between the two runs is 0" in again.text()


def test_a_rerun_notices_other_numbers(tmp_path):
    plain = json.loads(claim().to_json())
    plain["experiments"][0]["found"]["values"][0][3] += 0.25
    agreement = Claim.from_json(json.dumps(plain)).rerun(model()).agreement
    assert agreement["zero the head"] == pytest.approx(0.25)
    assert agreement["random heads"] == 0


def test_other_weights_are_noticed(tmp_path):
    blocks = model().params.blocks
    W_O = blocks.attn.W_O.at[0, 1, 2, 3].add(1e-3)
    other = model().replace(
        params=model().params.replace(blocks=blocks.replace(attn=blocks.attn.replace(W_O=W_O)))
    )
    path = ji.save(tmp_path / "other", other)
    given = Claim.from_json(dataclasses.replace(claim(), source=str(path)).to_json())
    with pytest.raises(ValueError, match=f"expected|about.*{weights_digest(model())}"):
        given.rerun()
    with pytest.raises(ValueError, match="another model, or its weights were changed"):
        claim().run(other)
    with pytest.raises(ValueError, match="config"):
        claim().run(model().replace(config=model().config.replace(norm_eps=0.5)))
    with pytest.raises(ValueError, match=r"not loaded from anywhere: give rerun\(model\)"):
        claim().rerun()


def test_nothing_can_be_written_to():
    given = claim()
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.statement = "more"
    with pytest.raises(TypeError):
        given.model["model"] = "another"
    with pytest.raises(ValueError, match="read-only"):
        given["zero the head"].found.values[0, 0] = 9
    mine = np.zeros(5, np.float32)
    e = Experiment("x", "effect", pairs().clean, ji.add("z", mine), metric())
    mine[:] = 3
    assert (e.intervention[0].value == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "has no name"),
        ({"role": "proof"}, "role 'proof': expected one of"),
        ({"intervention": ()}, "no intervention"),
        ({"tokens": np.array([[1, 2, 3]])}, "has one prompt"),
        ({"margin": 0.0}, "margin=0.0"),
        ({"texts": ["a"]}, f"1 texts, {N} prompts"),
        ({"intervention": every_head()}, "grid=True"),
        ({"intervention": ji.zero("z", layer=np.ones((2, 2), bool))}, "grid=True"),
        ({"grid": True}, "leading experiment axis"),
        ({"intervention": lambda value, at: value}, "<lambda> is not jaxinterp's own"),
        ({"metric": ji.metric(lambda logits: logits[:, 0, 0])}, "metric of 'x'.*jaxinterp's own"),
        ({"metric": ji.logit_diff([1, 2], [2, 1])}, "values for 2 prompts"),
    ],
)
def test_bad_experiments(fields, message):
    given = {
        "name": "x", "role": "effect", "tokens": pairs().clean, "intervention": EDIT,
        "metric": metric(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        Experiment(**{**given, **fields})


def test_bad_claims(tmp_path):
    twice = experiments()[:1] * 2
    for fields, message in (
        ({"experiments": twice}, "Two experiments are called 'zero the head'"),
        ({"level": 95}, "level=95"),
        ({"resamples": 0}, "resamples=0"),
    ):
        with pytest.raises(ValueError, match=message):
            unrun(**fields)
    with pytest.raises(ValueError, match="says nothing"):
        Claim("", model())
    with pytest.raises(KeyError, match="the claim has zero the head"):
        claim()["nothing"]
    with pytest.raises(ValueError, match=r"expected .json, .html, .txt"):
        claim().save(tmp_path / "claim.pdf")
    infinite = Experiment(
        "overflow", "effect", pairs().clean, ji.scale("resid_post", np.float32(np.inf)), metric()
    )
    with pytest.raises(ValueError, match=f"not finite for {N} of {N} prompts, the first is 0"):
        unrun(experiments=infinite).run(model())


def test_other_json_is_refused():
    text = claim().to_json()
    for bad, message in (
        ("{", "not the JSON of a claim"),
        ("[]", "format None"),
        (text.replace('"claim": 1', '"claim": 9'), "format 9, expected 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Claim.from_json(bad)
    plain = json.loads(text)
    del plain["experiments"][0]["metric"]
    with pytest.raises(ValueError, match=r"lacks something.*metric"):
        Claim.from_json(json.dumps(plain))
    plain = json.loads(text)
    plain["experiments"][0]["found"]["values"][0].pop()
    with pytest.raises(ValueError, match="do not fit"):
        Claim.from_json(json.dumps(plain))


def test_a_text_and_a_page_are_written(tmp_path):
    assert claim().save(tmp_path / "c.txt").read_text() == claim().text()
    assert claim().save(tmp_path / "c.html").read_text() == claim().html()


def beside_others(*given):
    return dataclasses.replace(claim(), experiments=[*claim().experiments, *given])


def test_what_all_of_a_grid_share_is_said_once():
    heads = ji.zero("z", **ji.product(layer=[1], head=range(4)))
    grid = Experiment("heads of layer 1", "localization", pairs().clean, heads, metric(), grid=True)
    text = beside_others(measure(grid, model(), level=0.95, resamples=200, seed=5)).text()
    assert "4 interventions: zero z at layer 1." in " ".join(text.split())
    own = text[text.index("heads of layer 1") :]
    assert "\n    head 0: changes logit_diff" in own
    assert "8 interventions: zero z." in text  # theirs are of both layers
    assert "layer 1, head 0: changes" in text


def test_sets_of_heads_are_named_short():
    two = [ji.zero("z", layer=[0, 1], head=[3, 0]), ji.zero("z", layer=[1, 1], head=[2, 3])]
    grid = Experiment("pairs", "control", pairs().clean, two, metric(), grid=True)
    text = beside_others(measure(grid, model(), level=0.95, resamples=200, seed=5)).text()
    assert "the furthest of 2 is heads 1.0, 1.3: " in " ".join(text.split())


def test_what_changed_stands_before_what_is_larger_and_not_clear():
    noise = np.random.default_rng(0).normal(size=N)
    values = np.stack([100 * (noise - noise.mean()), 0.5 + 0.01 * noise, *np.zeros((6, N))])
    found = Found(np.zeros(N), values, 0.95, 200, 0)
    grid = dataclasses.replace(claim()["every head"], name="made up", found=found)
    own = beside_others(grid).text().split("made up")[1]
    assert "1 of 8 change it; these first, the furthest:\n    layer 0, head 1: changes" in own
    assert own.index("head 1: changes") < own.index("layer 0, head 0: no effect shown")


def test_a_change_across_the_margin_is_undecided_and_none_is_not_shown():
    noise = np.random.default_rng(0).normal(size=N)
    elsewhere, nowhere = (
        dataclasses.replace(
            claim()["zero the head"], name=name, role="specificity", margin=1.0,
            found=Found(np.zeros(N), shift + noise[None] - noise.mean(), 0.95, 200, 0),
        )
        for name, shift in (("elsewhere", 1.0), ("nowhere", 0.2))
    )  # fmt: skip
    assert 0 < elsewhere.found.low[0] < 1 < elsewhere.found.high[0]
    given = beside_others(elsewhere, dataclasses.replace(nowhere, margin=0.1))
    text = " ".join(given.text().split())
    assert "Specificity: 'elsewhere' changes; whether by more than the margin of 1 is und" in text
    assert nowhere.found.low[0] < 0 < 0.1 < nowhere.found.high[0]
    assert "Specificity: 'nowhere' shows no change, but is not shown to be left alone" in text
    assert '"verdict": "undecided"' in given.html().replace('":"', '": "')


def test_controls_are_held_against_every_effect():
    little = Experiment(
        "a little less", "effect", pairs().clean, ji.scale("z", 0.97, layer=1, head=0), metric()
    )
    little = measure(little, model(), level=0.95, resamples=200, seed=5)
    assert little.verdicts() == ["changed"]
    as_far = np.abs(claim()["random heads"].found.estimate) >= np.abs(little.found.estimate[0])
    assert as_far.any()
    text = " ".join(beside_others(little).text().split())
    assert f"{as_far.sum()} of 7 of 'random heads' move the metric as far as 'a little" in text


def test_a_grid_may_name_its_interventions():
    names = [f"candidate {i}" for i in range(8)]
    every = dataclasses.replace(claim()["every head"], names=names)
    named = dataclasses.replace(
        claim(), experiments=[*claim().of_role("effect", "control"), every],
        recipe="python scripts/some_study.py (12 s)",
    )  # fmt: skip
    assert "candidate 4: changes" in named.text()
    assert "made by python scripts/some_study.py (12 s)" in " ".join(named.text().split())
    back = Claim.from_json(named.to_json())
    assert back["every head"].names == tuple(names)
    assert back.text() == named.text()
    for wrong in (names[:7], [*names[:7], names[0]]):
        with pytest.raises(ValueError, match="one for each of 8 interventions"):
            dataclasses.replace(every, names=wrong)
    with pytest.raises(ValueError, match="one for each of 1"):
        dataclasses.replace(claim()["zero the head"], names=["it"])
