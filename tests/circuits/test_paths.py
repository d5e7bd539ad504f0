import numpy as np
import pytest
from edge_oracle import run
from small_models import CONFIGS, CORRECT, DIFF, OTHER, PROMPTS, WRONG, small_model, with_long

from jaxinterp.circuits import Graph, patch_edges, patch_paths

RUNS = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}


def two_passes(name, prompt, senders, receivers, through):
    """The definition, with whole NumPy forwards; receivers' inputs are exchanged bodily."""
    model, graph = small_model(name), Graph(CONFIGS[name])
    _, clean = run(model, PROMPTS[prompt])
    _, other = run(model, OTHER[prompt])
    hold = {s: clean[s] for s in graph.senders if s not in through}
    hold |= {s: other[s] for s in senders}
    first, second = {}, {}

    def read(into):
        def come(receiver, written):
            into[receiver] = sum(written.values())
            return 0.0

        return come

    run(model, PROMPTS[prompt], read(first), hold)

    def come(receiver, written):
        now = sum(written.values())
        second[receiver] = now
        return first[receiver] - now if receiver in receivers else 0.0

    logits, _ = run(model, PROMPTS[prompt], come)
    return logits[-1, CORRECT[prompt]] - logits[-1, WRONG[prompt]]


CASES = [
    (["a2.h1<q>"], []),
    (["logits"], []),
    (["a1.h0<k>", "a2.h1<q>", "m2"], []),
    (["a2.h1<q>", "logits"], "mlps"),
    (["logits"], "heads"),
    (["m2", "a2.h0<v>"], ["a1.h0", "m0"]),
]


@pytest.mark.parametrize("name", with_long("gpt2"))
@pytest.mark.parametrize(("receivers", "through"), CASES)
def test_paths_equal_two_whole_passes(name, receivers, through):
    graph = Graph(CONFIGS[name])
    senders = ["input", "a0.h2", "m0", "a1.h3"]
    got = patch_paths(
        small_model(name), receivers=receivers, senders=senders, through=through, **RUNS
    )
    kinds = {"mlps": "m", "heads": "a"}
    open_ = through
    if isinstance(through, str):
        open_ = [s for s in graph.senders if s[0] == kinds[through]]
    for i, sender in enumerate(senders):
        for prompt in range(2):
            # Biases are in no sender, but the same in both passes.
            want = two_passes(name, prompt, [sender], receivers, set(open_))
            np.testing.assert_allclose(got.values[i, prompt], want, atol=1e-5)


@pytest.mark.parametrize("name", with_long("neox", "gemma2", core=["llama"]))
def test_one_receiver_and_no_detours_is_an_edge(name):
    for receiver in ("a1.h2<q>", "m2", "logits"):
        paths = patch_paths(small_model(name), receivers=[receiver], **RUNS)
        edges = [f"{s}->{receiver}" for s in paths["sender"].values]
        exact = patch_edges(small_model(name), edges=edges, **RUNS)
        np.testing.assert_allclose(paths.values, exact.values, atol=1e-5)


def test_all_senders_through_everything_is_the_corrupted_run():
    graph = Graph(CONFIGS["llama"])
    got = patch_paths(
        small_model("llama"), receivers=["logits"], senders=list(graph.senders), together=True,
        **RUNS,
    )  # fmt: skip
    assert got.sizes == {"sender": 1, "prompt": 2}
    np.testing.assert_allclose(got[0], got["corrupted"], atol=1e-5)
    whole = patch_paths(
        small_model("llama"), receivers=["logits"], senders=["input"], through=["heads", "mlps"],
        **RUNS,
    )  # fmt: skip
    np.testing.assert_allclose(whole[0], got["corrupted"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"receivers": ["a0.h0<q>"], "senders": ["a1.h0"]}, "no path leads there"),
        ({"receivers": []}, "No receivers"),
        ({"receivers": ["a0.h0"]}, "does not read"),
        ({"receivers": ["logits", "logits"]}, "twice"),
        ({"receivers": ["logits"], "senders": []}, "No senders"),
        ({"receivers": ["logits"], "through": ["a9.h9"]}, "does not write"),
    ],
)
def test_bad_input(change, says):
    with pytest.raises(ValueError, match=says):
        patch_paths(small_model("llama"), **RUNS, **change)
