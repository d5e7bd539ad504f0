"""Cases of experiments: sweeps, ablation, attribution, pairs, tracing, statistics, claims."""

import numpy as np
from cases import EXACT, GRADIENT, case
from small_models import CORRECT, OTHER, PROMPTS

import jaxinterp as ji

LOSS = ji.log_prob(CORRECT)
PAIR = {"clean": PROMPTS, "corrupted": OTHER, "metric": LOSS}
GRID = {"site": "z", "over": ("layer", "head")}


def copies(n=400):
    """n copies of a prompt: a bfloat16 sum of equal numbers stops growing at 256 of them."""
    return np.tile(PROMPTS[:1], (n, 1))


def loud(given):
    """A model whose stream is so long that float16 cannot hold the sum of a few hundred."""
    model = given.model()
    embed = model.params.embed.replace(W_E=model.params.embed.W_E * 1024)
    return model.replace(params=model.params.replace(embed=embed))


# Ablation -----------------------------------------------------------------------------------------


@case("mean_activations")
def mean_of_copies(given):
    tokens = [np.concatenate([copies(), OTHER])]
    found = ji.mean_activations(given.model(), tokens, ["z", "resid_post"], second=True)
    by_label = ji.mean_activations(
        given.model(), tokens, ["z"], by=("position", [0] * 300 + [1] * 102)
    )
    return found, by_label


@case("ablate", long=True)
def ablated(given):
    tokens, metric = np.concatenate([copies(300), OTHER]), ji.log_prob(4)
    values = {
        value: ji.ablate(
            given.model(), tokens=tokens, metric=metric, value=value, layers=[0, 1], heads=[0]
        )
        for value in ("mean", "zero", "resample")
    }
    values["along"] = ji.ablate(
        given.model(), tokens=tokens, metric=metric, value="mean", layers=[1], heads=[0, 3],
        direction=given.normal(6, scale=300),
    )  # fmt: skip
    return values


@case("ablate", long=True)
def ablated_to_a_mean_of_large_values(given):
    return ji.ablate(
        loud(given), tokens=copies(), metric=ji.log_prob(4), value="mean", site="resid_post",
        over="layer", by=None,
    )  # fmt: skip


@case("ablation.ablation_grid", long=True)
def ablated_in_every_way(given):
    tokens, donors = copies(300), np.tile(OTHER[:1], (300, 1))
    return ji.ablation.ablation_grid(
        given.model(), tokens=tokens, metric=ji.log_prob(4), components={"z": [(0, 1), (1, 2)]},
        donors=donors,
    )  # fmt: skip


@case("ablation.optimal_constants", long=True, within=GRADIENT)
def constants(given):
    return ji.ablation.optimal_constants(
        given.model(), tokens=copies(300), metric=ji.log_prob(4), objective=ji.log_prob(4),
        steps=20, layers=[1], heads=[0, 2],
    )  # fmt: skip


# Sweeps and patching ------------------------------------------------------------------------------


@case("patch", "share", "stats.effects", long=True)
def patched(given):
    found = ji.patch(given.model(), **PAIR)
    return found, ji.share(found) * 0 + found.mean("prompt"), ji.stats.effects(found)


@case("sweep", "sweep_plain", "product", "Ledger.rate", "Ledger.measure", long=True)
def swept(given):
    grid = ji.zero("z", **ji.product(layer=range(3), head=range(4)))
    ledger = ji.Ledger()
    found = ji.sweep(given.model(), PROMPTS, grid, ji.cross_entropy(), ledger=ledger)
    assert ledger.rate > 0
    return found, ji.sweep_plain(given.model(), PROMPTS, grid, ji.cross_entropy())


@case("patch_pairs", "pairs.conditional", "pairs.interaction", "pairs.singles", long=True)
def pairs(given):
    found = ji.patch_pairs(given.model(), **PAIR, components=[(0, 0), (1, 1), (2, 3)])
    exact = found.copy(data=np.asarray(given.normal(3, 3, 2, scale=0.01, shift=20)))
    exact = exact.assign_coords({end: ("prompt", np.float32([20, 21])) for end in _ENDS})
    derived = [ji.pairs.conditional(exact), ji.pairs.interaction(exact), ji.pairs.singles(exact)]
    return found, derived


_ENDS = ("clean", "corrupted")


@case("trace_causes", long=True)
def traced(given):
    return ji.trace_causes(
        given.model(), tokens=PROMPTS, subject=[[1, 2], [2, 3]], metric=LOSS, samples=3, window=2
    )


@case("scrub", long=True)
def scrubbed(given):
    tokens = np.concatenate([PROMPTS, OTHER])
    names = ["input", *(f"a{layer}.h{head}" for layer in range(2) for head in range(4))]
    hypothesis = {f"{name}->logits": [0, 1, 0, 1] for name in names} | {"m1->logits": "input"}
    return ji.scrub(
        given.model(), tokens=tokens, metric=ji.log_prob(4), hypothesis=hypothesis, draws=3
    )


# Attribution --------------------------------------------------------------------------------------


@case("attribute", within=GRADIENT, long=True)
def attributed(given):
    return ji.attribute(given.model(), **PAIR)


@case("attribute", within=GRADIENT, long=True)
def attributed_by_every_method(given):
    model = given.model()
    methods = {
        "atp_drop": "z", "atp_qk": "q", "atp*": "k", "ig": "z", "ig_inputs": "z", "relp": "z",
        "hvp": "z",
    }  # fmt: skip
    return {
        method: ji.attribute(
            model, **PAIR, site=site, over=("layer", "head"), method=method, steps=20
        )
        for method, site in methods.items()
    }


@case("attribution.interactions", within=GRADIENT, long=True)
def interactions(given):
    return ji.attribution.interactions(given.model(), **PAIR, layers=[0, 1], heads=[0, 1])


@case("comparison.exact_cells", long=True)
def exact_cells(given):
    run = ji.comparison.exact_cells(given.model(), **PAIR)
    return run(np.array([0, 5, 5, 12]))


# What is calculated from results ------------------------------------------------------------------


def result(given, shape=(3, 4), prompts=300, seed=0):
    """A result as `patch` gives it, stored in this dtype: values near 20, some 0.01 apart."""
    import xarray as xr

    values = np.asarray(given.normal(*shape, prompts, scale=0.5, shift=20, seed=seed))
    ends = [np.asarray(given.normal(prompts, shift=at, seed=seed + 1)) for at in (22, 18)]
    coords = {end: ("prompt", value) for end, value in zip(_ENDS, ends, strict=True)}
    attrs = {"direction": "denoise", "metric": "logit_diff"}
    coords |= {"layer": range(3), "head": range(4), "prompt": range(prompts)}
    return xr.DataArray(values, coords, ("layer", "head", "prompt"), "logit_diff", attrs)


def derived(given):
    """The derived arrays alone, without the stored ones that they carry along."""
    return given.reset_coords(drop=True)


@case("share", "stats.baseline", "stats.effects", within=EXACT)
def shares_of_stored_results(given):
    found = result(given)
    each = ji.share(found, prompts="each")
    effects = ji.stats.effects(found)
    return [ji.share(found), *(x.variable.values for x in (each, effects)),
            ji.stats.baseline(found)]  # fmt: skip


@case(
    "stats.bootstrap", "stats.paired_permutation", "stats.holm", "stats.benjamini_hochberg",
    within=EXACT,
)  # fmt: skip
def statistics_of_stored_results(given):
    found, other = result(given), result(given, seed=5)
    intervals = ji.stats.bootstrap(found, n=50)
    test = ji.stats.paired_permutation(found, other, n=50)
    p = given.normal(40, scale=0.1, shift=0.5)
    return [intervals, test.estimate, test.p, ji.stats.holm(p), ji.stats.benjamini_hochberg(p)]


@case("compare", "comparison.verify", "comparison.missed_bound", within=EXACT)
def comparisons_of_stored_results(given):
    exact, guess = result(given), result(given, seed=7)
    compared = ji.compare(exact, guess, k=(3,))
    verified = ji.comparison.verify(exact, guess, 8, k=3)
    return compared, verified, ji.comparison.missed_bound(100, 20, 1)


@case("report.summarize", "report.summary_table", within=EXACT)
def summaries_of_stored_results(given):
    from jaxinterp import report

    found = result(given)
    assert report.summary_table(found)
    return report.summarize(found, samples=50)


# Claims -------------------------------------------------------------------------------------------


@case(
    "claims.Found.rounding", "claims.Found.verdict", "claims.Found.verdict_of_average",
    within=EXACT,
)  # fmt: skip
def numbers_of_a_claim(given):
    without, values = given.normal(400, shift=20), given.normal(3, 400, shift=20.5, seed=1)
    found = ji.claims.Found(without, values, 0.95, 50, 0)
    verdicts = [found.verdict(1) == "changed", found.verdict_of_average() == "changed"]
    return found, found.rounding, verdicts


@case("Claim.run", "Experiment.results", "Claim.__getitem__", "Experiment.verdicts", long=True)
def claim(given):
    model = given.model()
    edit = ji.zero("z", **ji.product(layer=range(3), head=range(2)))
    metric = ji.log_prob(4)
    experiment = ji.Experiment("heads", "localization", copies(300), edit, metric, grid=True)
    made = ji.Claim("Some heads matter.", model, experiments=(experiment,), resamples=50)
    found = made.run(model)["heads"]
    assert len(found.verdicts()) == 6
    return found.results.without, found.results.values, found.results.estimate
