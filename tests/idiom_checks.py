"""What `test_idioms` holds each snippet of docs/idioms.md against, by the idiom's title.

The oracle is the NumPy transformer of `oracle`, whose edits are written as their hooks are. A check
gets the names that the section has bound so far, and the values of the snippet's bare expressions.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import oracle

import jaxinterp as ji
from jaxinterp import sae

sys.path.insert(0, str(Path(__file__).parent / "tasks"))
from vocabularies import word_level

TOKENIZER = word_level()
ROWS = (0, 5)  # the prompts that the oracle runs
CHECKS = {}


def check(title):
    def keep(function):
        assert title not in CHECKS
        CHECKS[title] = function
        return function

    return keep


class Names(dict):
    """What a section's snippets have bound, by attribute too."""

    __getattr__ = dict.__getitem__

    def theirs(self, edit=oracle.unedited, tokens=None):
        """(logits [P V], sites) of some prompts, as NumPy says."""
        ids = np.asarray((self["clean"] if tokens is None else tokens).ids)
        return [oracle.forward(self["model"], ids[row], edit=edit) for row in ROWS]

    def difference(self, logits, row):
        """The logit difference at the end."""
        task = self["task"]
        return logits[-1, task.answers[row]] - logits[-1, task.wrong[row]]

    def effects(self, edit, tokens=None):
        """The metric under an edit, of the oracle's prompts."""
        runs = self.theirs(edit, tokens)
        return [self.difference(run[0], row) for run, row in zip(runs, ROWS, strict=True)]


def at(site, layer, change):
    """An oracle's edit at one place: ``change(value)`` of a copy without a batch axis."""
    return lambda name, l, value: change(value) if (name, l) == (site, layer) else value


def both(*edits):
    def edit(name, layer, value):
        for each in edits:
            value = each(name, layer, value)
        return value

    return edit


def put(index, new):
    """A change that puts something at an index."""

    def change(value):
        value[index] = new
        return value

    return change


def close(found, wanted, **tolerance):
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})


def same_logits(names, edit=oracle.unedited, tokens=None):
    for row, (logits, _) in zip(ROWS, names.theirs(edit, tokens), strict=True):
        close(names.logits[row], logits)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_of(logits, ids):
    return -log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].mean()


def slope(names, site, layer, along, tokens=None):
    """The metric's derivatives along changes of a site, one for each of the oracle's prompts."""

    def end(h):
        edits = [at(site, layer, lambda v, change=h * d: v + change) for d in along]
        return np.array([names.effects(edit, tokens)[i] for i, edit in enumerate(edits)])

    return (end(1e-5) - end(-1e-5)) / 2e-5


ZERO_HEAD = at("z", 2, put((slice(None), 1), 0))
CLIP = at("mlp_post", 2, lambda v: v.clip(-0.5, 0.5))
NO_MLP = at("mlp_out", 2, lambda v: 0 * v)
NO_ATTENTION = at("attn_out", 2, lambda v: 0 * v)
STEER = at("resid_post", 1, lambda v: put(-1, v[-1] + 4)(v))
SAME_LOGITS = {  # where the logits under an edit are all there is to check
    "Some layers only": oracle.unedited,
    "run_with_hooks": ZERO_HEAD,
    "A hook with code of your own": CLIP,
    "Hooks that stay": both(ZERO_HEAD, CLIP),
    "Set values in a trace": both(STEER, NO_MLP),
    "edit": NO_MLP,
    "Modules out of order, stop()": both(NO_ATTENTION, NO_MLP),
}
for title, edit in SAME_LOGITS.items():
    CHECKS[title] = functools.partial(lambda n, shown, edit: same_logits(n, edit), edit=edit)


@check("Load a model")
def _(n, shown):
    assert n.gpt2.config.family == "gpt2"


@check("Fold norms, centre weights")
def _(n, shown):
    raw, folded = (ji.forward(m, n.clean).logits for m in (n.gpt2, n.folded))
    close(log_softmax(folded), log_softmax(raw))
    p = n.folded.params
    close(p.head.W_U.mean(-1), 0)
    close(p.blocks.mlp.W_out.mean(-1), 0)
    assert (p.blocks.ln1.w == 1).all()
    assert not p.blocks.attn.b_V.any()
    assert np.abs(raw - folded).max() > 0.01


@check("Configuration and weights")
def _(n, shown):
    assert shown[0] == 3
    assert [np.shape(x) for x in shown[1:3]] == [(8, 6), (8, 10)]
    assert [np.shape(x) for x in shown[3]] == [(TOKENIZER.vocab_size, 8), (8, TOKENIZER.vocab_size)]


@check("Text and tokens")
def _(n, shown):
    np.testing.assert_array_equal(n.tokens.ids, n.clean.ids)
    assert "".join(shown[1]) == shown[3] == n.prompts[0]
    assert TOKENIZER.decode([shown[2]]) == " Mary"


@check("Run")
def _(n, shown):
    same_logits(n)
    each = [loss_of(l, i) for l, i in zip(np.asarray(n.logits), n.clean.ids, strict=True)]
    close(n.loss, np.mean(each))


@check("run_with_cache")
def _(n, shown):
    for row, (_, sites) in zip(ROWS, n.theirs(), strict=True):
        close(n.z[row], sites["z"][2])


@check("Gradients")
def _(n, shown):
    assert n.grads.shape == (3, *n.clean.shape, 8)
    along = np.random.default_rng(0).normal(size=(2, n.clean.shape[1], 8))
    for layer in (0, 2):
        wanted = slope(n, "resid_pre", layer, along)
        close((np.asarray(n.grads)[layer, list(ROWS)] * along).sum((1, 2)), wanted, rtol=1e-3)


@check("Metrics")
def _(n, shown):
    found = np.asarray(ji.evaluate(n.metric, n.model, n.clean))
    for row, (logits, _) in zip(ROWS, n.theirs(), strict=True):
        close(found[row], n.difference(logits, row))
        close(n["values"][row], np.diff(np.sort(logits[-1])[-2:])[0])


@check("Activation patching")
def _(n, shown):
    assert n.found.dims == ("layer", "position", "prompt")
    donors = n.theirs()
    for layer, position in ((0, 4), (2, n.clean.shape[1] - 1), (1, 9)):
        for i, row in enumerate(ROWS):
            new = donors[i][1]["resid_pre"][layer][position]
            edit = at("resid_pre", layer, put(position, new))
            wanted = n.effects(edit, n.corrupted)[i]
            close(n.found.values[layer, position, row], wanted)
    means = (n.found.mean("prompt") - n.found.corrupted.mean()) / (
        n.found.clean.mean() - n.found.corrupted.mean()
    )
    close(shown[0], means)


@check("generic_activation_patch")
def _(n, shown):
    donors = n.theirs()
    for e, (layer, head) in enumerate([(1, 0), (1, 3), (2, 0), (2, 3)]):
        for i, row in enumerate(ROWS):
            new = donors[i][1]["z"][layer][:, head]
            edit = at("z", layer, put((slice(None), head), new))
            close(n["effects"][e, row], n.effects(edit, n.corrupted)[i])


@check("Ablation of every head")
def _(n, shown):
    means = np.asarray(ji.forward(n.model, n.clean, record="z").activations["z"]).mean(1)
    for layer, head in ((0, 2), (2, 1)):
        edit = at("z", layer, put((slice(None), head), means[layer, :, head]))
        close(n.found.values[layer, head, list(ROWS)], n.effects(edit))
    close(shown[0].estimate, (n.found - n.found.clean).mean("prompt"))


@check("Path patching")
def _(n, shown):
    clean, other = n.theirs(), n.theirs(tokens=n.corrupted)
    for head in (0, 3):
        for i, row in enumerate(ROWS):
            gap = clean[i][1]["result"][0][:, 1] - other[i][1]["result"][0][:, 1]
            edit = at("q_input", 2, lambda v, h=head, g=gap: put((slice(None), h), v[:, h] + g)(v))
            close(n.found.values[head, row], n.effects(edit, n.corrupted)[i])


@check("Attribution patching")
def _(n, shown):
    clean, other = n.theirs(), n.theirs(tokens=n.corrupted)
    along = [np.zeros_like(run[1]["z"][2]) for run in clean]
    for i in range(len(ROWS)):
        along[i][:, 1] = (clean[i][1]["z"][2] - other[i][1]["z"][2])[:, 1]
    found = (n.guess - n.guess.corrupted).sel(layer=2, head=1).values[list(ROWS)]
    close(found, slope(n, "z", 2, along, n.corrupted), rtol=1e-3)


@check("decompose_resid")
def _(n, shown):
    for row, (_, sites) in zip(ROWS, n.theirs(), strict=True):
        close(sum(part[row] for part in n.stack), sites["resid_pre"][2])
        close(n.heads[:, row].sum(2), sites["attn_out"][:2])


@check("Direct logit attribution")
def _(n, shown):
    close(n.parts.sum("component"), n.parts.total)
    close(n.parts.total.values[list(ROWS)], n.effects(oracle.unedited))
    for found in (n.heads, n.neurons):
        answers = [l[-1, n.task.answers[r]] for r, (l, _) in zip(ROWS, n.theirs(), strict=True)]
        close(found.sum("component").values[list(ROWS)], answers)
    assert {"a2.h1", "m2"} <= set(n.heads.component.values)
    assert {"a2.h1", "m2.n9"} <= set(n.neurons.component.values)


@check("accumulated_resid, logit_lens")
def _(n, shown):
    norm, W_U = np.asarray(n.model.params.ln_final.w), np.asarray(n.model.W_U)
    for row, (_, sites) in zip(ROWS, n.theirs(), strict=True):
        points = [*sites["resid_pre"], sites["resid_post"][-1]]
        for point, stream in enumerate(points):
            x = stream[-1]
            close(n.resid[point, row], x)
            logits = x / np.sqrt((x**2).mean() + n.model.config.norm_eps) * norm @ W_U
            answer = n.task.answers[row]
            assert shown[0].values[point, row] == (logits > logits[answer]).sum()
            close(n.said.log_prob.values[point, row, -1], log_softmax(logits)[answer])


@check("FactoredMatrix")
def _(n, shown):
    attn = n.model.params.blocks.attn
    wanted = attn.W_V[2, 0] @ attn.W_O[2, 1]  # heads 0 and 1 share a value head
    values, norm, dense = shown[0]
    close(dense, wanted)
    close(norm, np.linalg.norm(wanted))
    close(np.asarray(n.U) * n.S @ n.Vh, wanted)
    close(np.sort(np.abs(values)), np.sort(np.abs(np.linalg.eigvals(wanted)))[-6:], atol=1e-3)
    close(n.full.dense(), n.model.params.embed.W_E @ wanted @ n.model.W_U, atol=1e-3)
    qk = np.asarray(attn.W_Q[2, 3] @ attn.W_K[2, 1].T)
    first = np.asarray(attn.W_V[0, 0] @ attn.W_O[0, 1])
    k = np.linalg.norm(first @ qk.T) / np.linalg.norm(first) / np.linalg.norm(qk)
    close(shown[1].sel(sender_layer=0, sender_head=1, layer=2, head=3), k)


@check("detect_head")
def _(n, shown):
    ids = np.asarray(n.repeated.ids)
    (_, sites) = oracle.forward(n.model, ids[1])
    after = [sites["pattern"][2][1][q, q - 7] for q in range(8, 16)]
    close(shown[0].sel(layer=2, head=1, prompt=1), np.mean(after))


@check("generate, with hooks")
def _(n, shown):
    for result, edit in ((n.text, oracle.unedited), (n.other, ZERO_HEAD)):
        ids = np.asarray(result.tokens.ids)[0]
        logits, _ = oracle.forward(n.model, ids, edit=edit)
        before, new = logits[-6:-1], ids[-5:]
        ranks = (before > before[np.arange(5), new][:, None]).sum(-1)
        assert max(ranks) < (1 if result is n.text else 10)
    assert shown[0] == TOKENIZER.decode(np.asarray(n.text.new)[0])


@check("evals")
def _(n, shown):
    found = np.mean(np.asarray(ji.evaluate(n.task.metric, n.model, n.clean)) > 0)
    assert shown[0]["clean_preferred"] == found
    logits = np.asarray(ji.forward(n.model, n.repeated).logits)
    pairs = zip(logits, np.asarray(n.repeated.ids), strict=True)
    close(n.loss, [loss_of(l, i) for l, i in pairs])
    assert len(n.each) > 1
    assert np.shape(n.each[0]) == (2,)


@check("train")
def _(n, shown):
    logits = np.asarray(ji.forward(n.model, n.clean).logits)
    pairs = zip(logits, np.asarray(n.clean.ids), strict=True)
    close(shown[0], np.mean([loss_of(l, i) for l, i in pairs]))
    now = ji.evaluate(ji.cross_entropy(), n.trained, n.clean).mean()
    assert now < shown[0]


@check("trace, .save()")
def _(n, shown):
    same_logits(n)
    for row, (_, sites) in zip(ROWS, n.theirs(), strict=True):
        close(n.hidden[row], sites["resid_post"][2])


@check("session: from one run into another")
def _(n, shown):
    for i, row in enumerate(ROWS):
        new = n.theirs()[i][1]["resid_post"][1][5]
        logits, _ = n.theirs(at("resid_post", 1, put(5, new)), n.corrupted)[i]
        close(n.logits[row], logits)


@check("invoke: many experiments as one batch")
def _(n, shown):
    assert n.rows.shape == n.clean.shape[::-1]
    for position in (3, n.n - 1):
        for i, row in enumerate(ROWS):
            new = n.theirs()[i][1]["resid_post"][1][position]
            edit = at("resid_post", 1, put(position, new))
            close(n.rows[position, row], n.effects(edit, n.corrupted)[i])


@check("backward")
def _(n, shown):
    along = np.random.default_rng(1).normal(size=(2, n.clean.shape[1], 8))
    wanted = slope(n, "resid_post", 2, along)
    close((np.asarray(n.grad)[list(ROWS)] * along).sum((1, 2)), wanted, rtol=1e-3)


@check("generate, iter")
def _(n, shown):
    for row in ROWS:
        ids = np.asarray(n.text.tokens.ids)[row]
        logits, sites = oracle.forward(n.model, ids, edit=NO_MLP)
        close(n.hidden[row], sites["resid_post"][1][-6:-1])
        assert (logits[-6:-1].argmax(-1) == ids[-5:]).all()


@check("scan")
def _(n, shown):
    assert n["shape"] == (3, *n.clean.shape, 8)


def given():
    """A dictionary to be found on the hub."""
    config = sae.DictionaryConfig(8, 20, site="resid_post", layers=(1,))
    rng = np.random.default_rng(0)
    arrays = {k: (rng.normal(size=s) / 3).astype(np.float32) for k, s in config.shapes.items()}
    return sae.Dictionary(sae.Parameters(**arrays), config)


def numpy_features(d, x):
    p = jax.tree.map(np.asarray, d.params)
    return np.maximum(np.asarray(x) @ p.W_enc + p.b_enc, 0)


@check("SAE.from_pretrained")
def _(n, shown):
    jax.tree.map(np.testing.assert_array_equal, n.d.params, given().params)
    assert n.d.config.place == ("resid_post", 1)


@check("encode, decode")
def _(n, shown):
    for row, (_, sites) in zip(ROWS, n.theirs(), strict=True):
        close(n.x[row], sites["resid_post"][1])
    f, p = numpy_features(n.d, n.x), n.d.params
    close(n.features, f)
    close(n.made, f @ np.asarray(p.W_dec) + np.asarray(p.b_dec))


@check("run_with_saes")
def _(n, shown):
    p = jax.tree.map(np.asarray, n.d.params)
    instead = at("resid_post", 1, lambda x: numpy_features(n.d, x) @ p.W_dec + p.b_dec)
    same_logits(n, instead)


@check("run_with_hooks_with_saes")
def _(n, shown):
    W_dec = np.asarray(n.d.params.W_dec)

    def without(feature):
        row = W_dec[feature]
        return at(
            "resid_post", 1, lambda x: x - np.outer(numpy_features(n.d, x)[:, feature], row)
        )  # fmt: skip

    same_logits(n, without(7))
    for feature in (0, 15):
        close(n["effects"][feature, list(ROWS)], n.effects(without(feature)))


@check("Steering with a feature")
def _(n, shown):
    W_dec = np.asarray(n.d.params.W_dec)
    same_logits(n, at("resid_post", 1, lambda x: x + 10 * W_dec[7]))
    assert n.text.new.shape == (len(n.clean), 5)


@check("The tokens a feature raises")
def _(n, shown):
    row = np.asarray(n.d.params.W_dec)[7] * np.asarray(n.model.params.ln_final.w)
    order = np.argsort(-(row @ np.asarray(n.model.W_U)))[:5]
    assert shown[0].values.reshape(-1).tolist() == TOKENIZER.token_texts(order).tolist()


@check("CacheActivationsRunner, ActivationsStore")
def _(n, shown):
    assert n.x.shape == (64, 8)
    held = [
        np.asarray(ji.forward(n.model, block, record="resid_post").activations["resid_post"][1])
        for block in n.blocks
    ]
    every = np.concatenate([h[:, 1:].reshape(-1, 8) for h in held])
    nearest = np.abs(n.x[:, None] - every[None]).max(-1).min(-1)
    close(nearest, 0, atol=1e-2)  # kept in float16


@check("The training runner")
def _(n, shown):
    assert n.d.config == n.config
    assert float(n.d.k) == 8
    x = np.asarray(n.x)
    left = np.square(x - np.asarray(n.d(x))).sum()
    assert left < 0.8 * np.square(x - x.mean(0)).sum()


@check("run_evals")
def _(n, shown):
    assert 0 < float(n.said.l0) < 64
    each = []
    for block in n.blocks:
        logits = np.asarray(ji.forward(n.model, block).logits)
        pairs = zip(logits, np.asarray(block.ids), strict=True)
        each += [loss_of(l, i) for l, i in pairs]
    close(n.loss["original"], np.mean(each))


@check("save_model, load_from_disk")
def _(n, shown):
    close(n.again.encode(n.x), n.d.encode(n.x))
    assert (n.path / "sae_weights.safetensors").is_file()


@check("Dashboards")
def _(n, shown):
    assert "<title>d</title>" in Path("runs/features.html").read_text(encoding="utf-8")
    assert n.study.sizes["feature"] == 64


@check("Synthetic data")
def _(n, shown):
    close(n.x, n.true @ n.made.directions)
    random = sae.recovery(np.random.default_rng(1).normal(size=(32, 16)), n.made.directions)
    assert shown[0]["mcc"] > random["mcc"]
