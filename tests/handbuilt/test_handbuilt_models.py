"""Hand-built models solve their tasks, attend as they are said to, and say what is wrong."""

import jax
import numpy as np
import pytest
from edge_reference import score
from oracle import assert_near, batch

from jaxinterp import handbuilt
from jaxinterp.handbuilt import (
    MODELS,
    Alphabet,
    backup_head,
    duplicate_detection,
    previous_token_induction,
    reversal,
    token_fraction,
)  # fmt: skip
from jaxinterp.interventions import replace, zero
from jaxinterp.metrics import evaluate
from jaxinterp.model import forward, shapes


def continued(text):
    return text[text.index(text[-1]) + 1]


def backwards(text):
    return "".join(reversed(text.split("$")[0]))


def majority(text):
    return ">" if sum(s == "x" for s in text) / len(text) > 0.5 else "<"


def repeated(text):
    return "+" if len(set(text)) < len(set(text[:-1])) + 1 else "-"


def only_letter(text):
    return next(s for s in text if s.isalpha())


VARIANTS = {
    "induction": (previous_token_induction, continued),
    "induction-grouped": (lambda: previous_token_induction(grouped=True), continued),
    "induction-rms": (lambda: previous_token_induction(norm="rms"), continued),
    "induction-layer": (lambda: previous_token_induction("layer", grouped=True), continued),
    "fraction": (token_fraction, majority),
    "reversal": (reversal, backwards),
    "duplicates": (duplicate_detection, repeated),
    "backup": (backup_head, only_letter),
}
SHORT = 9


def texts(known, tokens):
    return [known.alphabet.decode(row) for row in tokens.ids]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_answer_is_right(name):
    builder, solve = VARIANTS[name]
    known = builder()
    for length in (known.lengths[0], min(known.lengths[-1], 40)):
        pairs = known.make(n=100, length=length, seed=length)
        top = np.asarray(forward(known.model, pairs.clean).logits).argmax(-1)
        for row, text in enumerate(texts(known, pairs.clean)):
            expected = solve(text)
            assert len(text) == length
            several = pairs.answers.ndim == 2
            given = pairs.answers[row] if several else pairs.answers[row : row + 1]
            assert known.alphabet.decode(given[given >= 0]) == expected
            said = top[row, : len(expected)] if several else top[row, -1:]
            assert known.alphabet.decode(said) == expected, text


@pytest.mark.parametrize("name", VARIANTS)
def test_twins_differ_in_answer_and_the_metric_tells(name):
    builder, solve = VARIANTS[name]
    known = builder()
    pairs = known.make(n=6, length=SHORT, seed=2)
    metric = known.metric(pairs.answers, pairs.wrong)
    clean = np.asarray(evaluate(metric, known.model, pairs.clean))
    corrupted = np.asarray(evaluate(metric, known.model, pairs.corrupted))
    assert (clean > 1).all()
    assert (corrupted < clean - 1).all()
    assert (pairs.clean.ids != pairs.corrupted.ids).any(-1).all()
    assert ((pairs.answers != pairs.wrong) | (pairs.answers < 0)).all()
    runs = batch(known.model, pairs.clean)
    logits = np.stack([run[0] for run in runs])
    assert_near(forward(known.model, pairs.clean).logits, logits, 1e-5)
    by_hand = [score(*row) for row in zip(logits, pairs.answers, pairs.wrong, strict=True)]
    assert_near(clean, by_hand, 1e-5)
    if known.name not in ("reversal", "backup_head"):
        wrong = [known.alphabet.encode(solve(t))[0] for t in texts(known, pairs.corrupted)]
        assert pairs.wrong.tolist() == wrong


def test_prompts_follow_the_seed():
    known = reversal()
    one, same, other = (known.make(n=5, length=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.clean.ids, same.clean.ids)
    assert np.array_equal(one.corrupted.ids, same.corrupted.ids)
    assert not np.array_equal(one.clean.ids, other.clean.ids)


# Where each head attends, in plain Python: (text, position) to weights by source.
def at(source):
    return {source: 1.0}


def alike(sources):
    sources = list(sources)
    return dict.fromkeys(sources, 1 / len(sources))


def seen(text, p):
    """Positions up to p that have p's symbol."""
    return [s for s in range(p + 1) if text[s] == text[p]]


def matching(text, p):
    """Where the previous symbol is the current one; the first position precedes itself."""
    return [s for s in range(p + 1) if text[max(s - 1, 0)] == text[p]] or range(p + 1)


def mirrored(text, p):
    end = text.index("$")
    return at(end - 1 - p) if p < end else alike(range(len(text)))


def counting(text, p):
    return alike([s for s in range(p + 1) if text[s] in ("^", text[p])])


def letter_if_asked(text, p):
    found = [s for s in range(p + 1) if text[s].isalpha()]
    return alike(found if text[p] == "?" else range(p + 1))


def rests(text, p):
    """The backup: at "?" on ^ when the primary has found the letter. Elsewhere: see below."""
    return at(0) if text[p] == "?" else None


INDUCTION = {
    (0, 0): lambda t, p: at(max(p - 1, 0)),
    (0, 1): lambda t, p: at(p),
    (0, 2): lambda t, p: at(max(p - 2, 0)),
    (0, 3): lambda t, p: at(0),
    (1, 0): lambda t, p: alike(matching(t, p)),
    (1, 1): lambda t, p: alike(matching(t, p)),
    (1, 2): lambda t, p: at(p),
    (1, 3): lambda t, p: at(0),
}
PATTERNS = {
    **dict.fromkeys([n for n in VARIANTS if n.startswith("induction")], INDUCTION),
    "fraction": {
        (0, 0): lambda t, p: alike(range(p + 1)),
        (0, 1): lambda t, p: alike(seen(t, p)),
        (1, 0): lambda t, p: alike(range(p + 1)),
        (1, 1): lambda t, p: alike(range(p + 1)),
    },
    "reversal": {
        (0, 0): lambda t, p: at(t.index("$")),
        (0, 1): lambda t, p: alike([s for s in range(len(t)) if t[s] == t[p]]),
        (1, 0): mirrored,
        (1, 1): mirrored,
    },
    "duplicates": {
        (0, 0): counting,
        (0, 1): lambda t, p: at(0),
        (1, 0): lambda t, p: alike(range(p + 1)),
        (1, 1): lambda t, p: alike(seen(t, p)),
    },
    "backup": {(0, 0): letter_if_asked, (1, 0): rests, (1, 1): letter_if_asked},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_attend_as_they_are_said_to(name):
    known = VARIANTS[name][0]()
    pairs = known.make(n=6, length=SHORT, seed=4)
    pattern = np.asarray(forward(known.model, pairs.clean, record="pattern").activations["pattern"])
    for (layer, head), rule in PATTERNS[name].items():
        for row, text in enumerate(texts(known, pairs.clean)):
            for p in range(len(text)):
                if (weights := rule(text, p)) is None:
                    continue
                expected = np.zeros(len(text))
                for source, weight in weights.items():
                    expected[source] = weight
                np.testing.assert_allclose(
                    pattern[layer, row, head, p], expected, atol=1e-5,
                    err_msg=f"a{layer}.h{head} at {p} of {text}",
                )  # fmt: skip


def test_the_fraction_is_right_at_every_position():
    known = token_fraction()
    pairs = known.make(n=10, length=31, seed=0)
    logits = np.asarray(forward(known.model, pairs.clean).logits)
    for row, text in enumerate(texts(known, pairs.clean)):
        for p in range(len(text)):
            share = text[: p + 1].count("x") / (p + 1)
            assert logits[row, p, known.alphabet.id(">")] == pytest.approx(10 * share, abs=1e-4)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_either_head_alone_is_not_missed_both_together_are(ablation):
    known = backup_head()
    pairs = known.make(n=10, length=12, seed=6)
    metric = known.metric(pairs.answers, pairs.wrong)
    z = forward(known.model, pairs.corrupted, record="z").activations["z"]

    def ablate(name):
        layer, head = int(name[1]), int(name[4])
        if ablation == "zero":
            return zero("z", layer=layer, head=head)
        return replace("z", z, layer=layer, head=head)

    def measured(*names):
        return np.asarray(evaluate(metric, known.model, pairs.clean, tuple(map(ablate, names))))

    (primary,), (backup,) = known.primary, known.backup
    clean = measured()
    np.testing.assert_allclose(measured(primary), clean, rtol=1e-5)
    np.testing.assert_allclose(measured(backup), clean, rtol=1e-5)
    np.testing.assert_allclose(measured(primary, backup), 0, atol=1e-5)
    out = forward(known.model, pairs.clean, ablate(primary), record="pattern")
    letters = [[s.isalpha() for s in text] for text in texts(known, pairs.clean)]
    np.testing.assert_allclose(out.activations["pattern"][1, :, 0, -1], letters, atol=1e-5)


def test_the_backup_models_mlp_is_saturated_on_clean_prompts():
    known = backup_head()
    pairs = known.make(n=4, length=8, seed=1)
    metric = known.metric(pairs.answers, pairs.wrong)

    def measured(outputs, strength):
        attn = known.model.params.blocks.attn.replace(W_O=strength * outputs)
        blocks = known.model.params.blocks.replace(attn=attn)
        model = known.model.replace(params=known.model.params.replace(blocks=blocks))
        return evaluate(metric, model, pairs.clean).sum()

    slope = jax.grad(measured)
    outputs = known.model.params.blocks.attn.W_O
    for strength, flat in ((1.0, True), (0.2, False)):
        into_letter = slope(outputs, strength)[..., known.layout["letter"]]
        assert (np.abs(into_letter).max() == 0) == flat


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("grouped", [False, True])
def test_norms_change_nothing_on_prompts(norm, grouped):
    plain, normed = previous_token_induction(), previous_token_induction(norm, grouped)
    ids = plain.make(n=8, length=12, seed=3).clean
    expected = np.asarray(forward(plain.model, ids).logits)[:, -1]
    assert_near(np.asarray(forward(normed.model, ids).logits)[:, -1], expected, 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_and_layout_fit_the_architecture(name):
    known = VARIANTS[name][0]()
    config = known.model.config
    stated = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), known.model.params) == stated
    covered = [i for where in known.layout.values() for i in range(where.start, where.stop)]
    assert covered == list(range(config.d_model))


def test_variables_stand_where_the_layout_says():
    known = reversal()
    text = "caf$.."
    ids = np.array([known.alphabet.encode(text)])
    stream = np.asarray(forward(known.model, ids, record="resid_post").activations["resid_post"])
    end = stream[0, 0, :, known.layout["end"]]
    assert (end.argmax(-1) == 3).all()
    target = stream[0, 0, :3, known.layout["target"]]
    assert target.argmax(-1).tolist() == [2, 1, 0]


def test_names():
    assert set(MODELS) == {MODELS[name]().name for name in MODELS}
    assert set(MODELS) <= set(handbuilt.__all__)


def test_alphabet():
    alphabet = Alphabet("^ab")
    assert alphabet.encode("ba^") == [2, 1, 0]
    assert alphabet.decode([2, 1, 0]) == "ba^"
    assert len(alphabet) == 3
    with pytest.raises(ValueError, match="'c' is not one of the symbols"):
        alphabet.encode("abc")
    with pytest.raises(ValueError, match="'ab' is not one of the symbols"):
        alphabet.id("ab")


def test_bad_input():
    with pytest.raises(ValueError, match="length=17: previous_token_induction takes prompts of 4 "):
        previous_token_induction().make(n=2, length=17)
    with pytest.raises(ValueError, match="n=0, expected"):
        reversal().make(n=0, length=6)
    with pytest.raises(ValueError, match="norm='batch', expected 'none'"):
        previous_token_induction(norm="batch")
