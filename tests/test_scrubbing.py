"""Causal scrubbing equals a loop that resamples by hand, and tells true hypotheses from false."""

import numpy as np
import oracle
import pytest
from oracle import assert_near
from small_models import ragged, small_model, with_long

from jaxinterp.circuits.graph import Graph
from jaxinterp.handbuilt import duplicate_detection, previous_token_induction, token_fraction
from jaxinterp.metrics import evaluate, kl, logit_diff
from jaxinterp.model import as_tokens, forward
from jaxinterp.results import load, save, share
from jaxinterp.scrubbing import agreeing, numbered, scrub, state

IDS = np.array(
    [[3, 1, 4, 1, 5], [6, 5, 3, 1, 8], [3, 9, 4, 6, 2], [6, 7, 9, 6, 2], [3, 1, 4, 6, 2]]
)
RIGHT, WRONG = np.array([4, 9, 2, 6, 1]), np.array([8, 2, 7, 3, 0])
DIFF = logit_diff(RIGHT, WRONG)


def first(ids):
    return ids[0]


def last(ids):
    return ids[-1] == 2


# Two levels, each kind of receiver and sender, an opened part that is read twice. {0}, {1} are the
# layers of the opened parts.
DEEP = {
    "a2.h3->logits": last,
    "m1->logits": first,
    "input->logits": "input",
    "m1->a2.h3<q>": last,
    "a1.h2->a2.h{kv3}<k>": first,
    "a0.h1->a2.h{kv3}<v>": [0, 1, 0, 1, 1],
    "input->a1.h2<q>": first,
    "a0.h0->a1.h{kv2}<v>": "input",
    "a0.h1->m1": last,
    "m0->m1": lambda ids: sum(ids) % 2,
    "input->m0": first,
}


def deep(name):
    """That hypothesis, for a model's own key/value heads and MLPs."""
    c = small_model(name).config
    heads = {f"kv{h}": h // (c.n_heads // c.n_kv_heads) for h in (2, 3)}
    named = {edge.format(**heads): feature for edge, feature in DEEP.items()}
    if c.attention_only:
        named = {edge: feature for edge, feature in named.items() if "m" not in edge}
    return named


class ByHand:
    """The same tree of prompts, computed by whole forwards of the oracle, one row at a time."""

    def __init__(self, model, ids):
        self.model, self.graph = model, Graph(model.config)
        self.ids = np.asarray(ids)
        self.plain = [self.run(row) for row in range(len(ids))]

    def run(self, row, change=lambda receiver, value: value):
        """(written by sender, read by receiver): one forward; readers get what ``change`` says."""
        c, p = self.model.config, self.model.params.blocks
        written, read, result = {}, {}, {}

        def edit(site, layer, value):
            if site == "resid_pre" and layer == 0:
                written["input"] = value.copy()
            elif site in ("q_input", "k_input", "v_input"):
                for head in range(value.shape[1]):
                    name = f"a{layer}.h{head}<{site[0]}>"
                    read[name] = value[:, head].copy()
                    value[:, head] = change(name, value[:, head])
            elif site == "result":
                result[layer] = value.copy()
            elif site == "ln1_post_scale":  # the sum of heads is normed: its scale is shared out
                result[layer] = result[layer] / value[:, :, None] * np.asarray(p.ln1_post.w)[layer]
            elif site == "mlp_in":
                read[f"m{layer}"] = value.copy()
                value = change(f"m{layer}", value)
            elif site == "mlp_out":
                written[f"m{layer}"] = value.copy()
            elif site == "resid_post" and layer == c.n_layers - 1:
                read["logits"] = value.copy()
                value = change("logits", value)
            return value

        logits, _ = oracle.forward(self.model, self.ids[row], edit=edit)
        for layer, value in result.items():
            written |= {f"a{layer}.h{h}": value[:, h] for h in range(c.n_heads)}
        return written, read, logits

    def reads(self, part, row, receiver):
        """What a receiver of a part reads: unnamed edges from one prompt, named ones in turn."""
        rest = int(part.rest[row])
        value = self.plain[rest][1][receiver].copy()
        for index, each in part.inputs:
            if self.graph.receivers[index] == receiver:
                name = self.graph.senders[each.sender]
                value += self.value(each, row) - self.plain[rest][0][name]
        return value

    def value(self, part, row):
        name, reference = self.graph.senders[part.sender], int(part.reference[row])
        if part.inputs is None:
            return self.plain[reference][0][name]
        mine = [self.graph.receivers[r] for r in np.flatnonzero(self.graph.readers[part.sender])]
        given = {receiver: self.reads(part, row, receiver) for receiver in mine}
        written, *_ = self.run(reference, lambda receiver, value: given.get(receiver, value))
        return written[name]

    def logits(self, root, row):
        """The last position's."""
        stream = self.reads(root, row, "logits")
        own = int(root.reference[row])
        return self.run(own, lambda r, value: stream if r == "logits" else value)[2][-1]


@pytest.mark.parametrize("name", with_long("gpt2", "attention_only"))
def test_scrubbing_equals_resampling_by_hand_with_the_same_draws(name):
    model, draws, seed = small_model(name), 2, 7
    result = scrub(model, tokens=IDS, metric=DIFF, hypothesis=deep(name), draws=draws, seed=seed)
    claims = state(model, as_tokens(IDS), deep(name))
    tree = claims.draw(np.tile(np.arange(5), draws), np.random.default_rng(seed))
    slow = ByHand(model, IDS)
    values, everything = [], []
    for row in range(5 * draws):
        for out, logits in (
            (values, slow.logits(tree, row)),
            (everything, slow.plain[tree.rest[row]][2][-1]),
        ):
            out.append(logits[RIGHT[row % 5]] - logits[WRONG[row % 5]])
    assert_near(result, np.reshape(values, (draws, 5)), 1e-5)
    assert_near(result.coords["corrupted"], np.reshape(everything, (draws, 5)), 1e-5)
    clean = np.array([slow.plain[i][2][-1] for i in range(5)])[np.arange(5)]
    assert_near(result.coords["clean"], clean[range(5), RIGHT] - clean[range(5), WRONG], 1e-5)
    assert np.abs(result - result.coords["clean"]).max() > 1e-2
    assert np.abs(result - result.coords["corrupted"]).max() > 1e-2


# Identities


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_whole_inputs_everywhere_change_nothing(name):
    model = small_model(name)
    graph = Graph(model.config)
    group = ("a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h0<v>")  # all that heads 0 and 1 read
    read = ("logits", "m1", *group)
    hypothesis = {edge: "input" for edge in graph.edges if edge.split("->")[1] in read}
    result = scrub(model, tokens=IDS, metric=DIFF, hypothesis=hypothesis, draws=2)
    assert result.attrs["opened"] == 1 + 1 + 2 + 2  # logits, m1, and the heads in both
    np.testing.assert_allclose(result, np.tile(result.coords["clean"], (2, 1)), atol=2e-4)
    np.testing.assert_allclose(result.coords["clean"], evaluate(DIFF, model, IDS), rtol=1e-4)


def test_no_edges_give_the_logits_of_random_prompts():
    model, draws = small_model("gpt2"), 40
    result = scrub(model, tokens=IDS, metric=DIFF, hypothesis={}, draws=draws, seed=3)
    np.testing.assert_array_equal(result, result.coords["corrupted"])
    logits = np.asarray(forward(model, IDS).logits)[:, -1]
    table = logits[:, RIGHT] - logits[:, WRONG]  # [random prompt, metric of]
    nearest = np.abs(table[None] - result.values[:, None]).argmin(1)
    np.testing.assert_allclose(result, np.take_along_axis(table, nearest, 0), rtol=1e-4, atol=1e-5)
    assert (np.bincount(nearest.reshape(-1), minlength=5) > 15).all()  # of 200, 40 expected each
    assert result.attrs["recovered"] == 0


def test_naming_senders_names_the_edges_between_them():
    model = small_model("llama")
    nodes = {"input": first, "a1.h3": last, "m2": first}
    edges = {
        "input->a1.h3<q>": first, "input->a1.h1<k>": first, "input->a1.h1<v>": first,
        "input->m2": first, "a1.h3->m2": last, "input->logits": first, "a1.h3->logits": last,
        "m2->logits": first,
    }  # fmt: skip
    both = [state(model, as_tokens(IDS), each) for each in (nodes, edges)]
    assert both[0].edges.keys() == both[1].edges.keys()
    for edge, classes in both[0].edges.items():
        np.testing.assert_array_equal(classes, both[1].edges[edge])
    changed = state(model, as_tokens(IDS), {**nodes, "input->m2": "input"})
    place = Graph(model.config).place("input->m2")
    assert len(set(changed.edges[place])) == 5 > len(set(both[0].edges[place]))


def test_batches_and_files_change_nothing(tmp_path):
    done = []
    options = {"tokens": IDS, "metric": DIFF, "hypothesis": deep("gpt2"), "draws": 2}
    whole = scrub(small_model("gpt2"), **options)
    small = scrub(small_model("gpt2"), batch=3, on_done=done.append, **options)
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)
    assert done == [3, 3, 3, 1]
    assert load(save(whole, tmp_path / "scrubbed.nc")).identical(whole)
    np.testing.assert_allclose(share(whole).mean("draw"), whole.attrs["recovered"], rtol=1e-4)
    assert (scrub(small_model("gpt2"), seed=1, **options) != whole).any()


def test_agreeing_prompts_are_drawn_uniformly_from_the_class():
    classes = numbered(["b", "a", "b", "c", "b", "a"])
    reference = np.repeat(np.arange(6), 600)
    drawn = agreeing(classes, reference, np.random.default_rng(0))
    np.testing.assert_array_equal(classes[drawn], classes[reference])
    counts = np.bincount(drawn[reference == 0], minlength=6)
    assert counts[[1, 3, 5]].sum() == 0
    assert (np.abs(counts[[0, 2, 4]] - 200) < 60).all()  # five standard deviations


def test_prompts_are_exchanged_for_others_of_their_length():
    tokens = ragged([[3, 1, 4], [6, 5], [3, 9, 2], [8, 1]], "left", 4)
    claims = state(small_model("llama"), tokens, {"a1.h0->logits": [0, 0, 0, 0]})
    tree = claims.draw(np.repeat(np.arange(4), 20), np.random.default_rng(0))
    for prompts in (tree.rest, tree.inputs[0][1].reference):
        np.testing.assert_array_equal(prompts % 2, tree.reference % 2)
        assert len(set(prompts)) == 4


# Hypotheses about models that were written by hand


def recovered(known, pairs, hypothesis, draws=3, **options):
    metric = known.metric(pairs.answers, pairs.wrong)
    result = scrub(
        known.model,
        tokens=pairs.clean,
        metric=metric,
        hypothesis=hypothesis,
        draws=draws,
        **options,
    )
    return result, result.attrs["recovered"]


def test_the_fraction_of_a_token_depends_on_its_count():
    known = token_fraction()
    pairs = known.make(24, 7)
    x, a = (known.alphabet.id(symbol) for symbol in "xa")

    def count(ids):
        return ids.count(x)

    true = {"a1.h0->logits": count, "m0->a1.h0<v>": count, "input->m0": count}
    result, value = recovered(known, pairs, true)
    assert value == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(result, np.tile(result.coords["clean"], (3, 1)), atol=1e-4)
    assert recovered(known, pairs, {"a1.h0": count})[1] == pytest.approx(1, abs=1e-5)
    for wrong in (
        {**true, "input->m0": lambda ids: ids.count(a)},
        {**true, "m0->a1.h0<v>": first},
        {"a1.h0->logits": first},
        {"a1.h1->logits": count},  # a head that nobody needs
        {k: true[k] for k in ("a1.h0->logits",)} | {"input->a1.h0<v>": count},  # not m0
    ):
        assert recovered(known, pairs, wrong)[1] < 0.5, list(wrong)


@pytest.mark.parametrize("grouped", [False, True])
def test_induction_finds_where_the_last_letter_stood(grouped):
    known = previous_token_induction(grouped=grouped)
    pairs = known.make(250, 5, seed=2)

    def at(ids):
        return ids[1:-1].index(ids[-1]) + 1

    true = {
        "a1.h0->logits": lambda ids: ids[at(ids) + 1],
        "input->a1.h0<q>": lambda ids: ids[-1],
        "a0.h0->a1.h0<k>": lambda ids: (ids[-1], at(ids)),
        "input->a1.h0<v>": lambda ids: (ids[at(ids) + 1], at(ids)),
        "input->a0.h0<v>": lambda ids: (ids[-1], at(ids)),
    }
    result, value = recovered(known, pairs, true, draws=1, batch=250)
    assert value == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(result[0], result.coords["clean"], atol=1e-3)
    for edge, feature in {
        "a0.h0->a1.h0<k>": lambda ids: ids[-1],  # where it stood matters too
        "input->a1.h0<q>": first,
        "input->a1.h0<v>": at,
    }.items():
        wrong = {**true, edge: feature}
        assert recovered(known, pairs, wrong, draws=1, batch=250)[1] < 0.9, edge


def test_a_feature_that_leaves_something_to_chance_keeps_the_mean_and_not_each_prompt():
    known = duplicate_detection()
    pairs = known.make(60, 6, seed=1)
    seen = {"m0->logits": lambda ids: ids[-1] in ids[1:-1]}
    often = {"m0->logits": lambda ids: ids[1:-1].count(ids[-1])}
    result, value = recovered(known, pairs, seen, draws=10)
    assert value == pytest.approx(1, abs=0.05)
    assert np.abs(result - result.coords["clean"]).max() > 1
    exact, value = recovered(known, pairs, often)
    assert value == pytest.approx(1, abs=1e-5)
    assert np.abs(exact - exact.coords["clean"]).max() < 1e-3


# Bad input


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ({"a9.h0": first}, "'a9.h0' does not write to this model's stream"),
        ({"m2->a0.h0<q>": first}, "m2 writes only after a0.h0<q> has read"),
        ({"a0.h0->a1.h0<q>": first}, "no named edges lead from there to the logits"),
        ({"m0": "first"}, "The feature of 'm0->logits' is 'first', expected a label"),
        ({"m0": [1, 2]}, "has 2 labels for 5 prompts"),
        ({"m0": lambda ids: [1]}, "gives list, which is not hashable"),
        (
            dict.fromkeys(Graph(small_model("gpt2").config).senders, first),
            r"opens \d+ parts, one for each path to the logits, more than 5000",
        ),
    ],
)
def test_bad_hypotheses_are_refused(hypothesis, message):
    with pytest.raises(ValueError, match=message):
        scrub(small_model("gpt2"), tokens=IDS, metric=DIFF, hypothesis=hypothesis)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"seed": -1}, "seed=-1"),
        ({"metric": logit_diff([99], [1])}, "outside the vocabulary"),
        ({"tokens": [[99, 1]]}, "Token id 99"),
    ],
)
def test_bad_requests_are_refused(options, message):
    given = {"tokens": IDS, "metric": DIFF, "hypothesis": {}, **options}
    with pytest.raises(ValueError, match=message):
        scrub(small_model("gpt2"), **given)


def test_a_stream_that_is_normed_has_no_edges_to_scrub():
    with pytest.raises(ValueError, match="it has no graph of edges"):
        scrub(small_model("bert"), tokens=IDS, metric=DIFF, hypothesis={})


def test_any_metric_will_do():
    model = small_model("llama")
    reference = forward(model, IDS).logits[:, -1]
    result = scrub(model, tokens=IDS, metric=kl(reference), hypothesis={"m2": first}, draws=2)
    np.testing.assert_allclose(result.coords["clean"], 0, atol=1e-6)
    assert result.coords["corrupted"].mean() > 1e-3
    assert np.isfinite(result).all()
