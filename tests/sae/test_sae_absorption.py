"""Absorption in worlds where it is built in by hand, against loops, and in a tiny model."""

import itertools
import json

import jax
import numpy as np
import pytest
import tokenizers
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from small_models import CONFIGS
from tokenizers import decoders, models, pre_tokenizers

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.sae import absorption as room
from jaxinterp.sae import spelling as task
from jaxinterp.tokens import Tokenizer

LETTERS = ("a", "b", "c")
N = 40  # words of a letter
WORDS = [f"{letter}{number}" for letter in LETTERS for number in range(N)]
LABELS = np.repeat(np.arange(len(LETTERS)), N)


def dictionary(seed=0, d_in=8, n_features=20, bias=0.0, **fields):
    config = sae.DictionaryConfig(d_in, n_features, **fields)
    rng = np.random.default_rng(seed)
    arrays = {n: (rng.normal(size=s) / 3).astype(np.float32) for n, s in config.shapes.items()}
    arrays["b_enc"] = arrays["b_enc"] + np.float32(bias)
    return sae.Dictionary(sae.Parameters(**arrays), config)


def world(absorbed=(), delta=1.0, strength=2.0):
    """Words that are a letter plus ``strength`` times themselves, all along axes of their own.

    A feature for each letter and for each word; those of ``absorbed`` words write ``delta`` of
    their letter, whose feature then fires that much less. Reconstruction is perfect throughout.
    """
    C, n = len(LETTERS), len(WORDS)
    own = C + np.arange(n)
    x = np.eye(C + n, dtype=np.float32)[LABELS] + strength * np.eye(C + n, dtype=np.float32)[own]
    W_enc, W_dec = np.eye(C + n, dtype=np.float32), np.eye(C + n, dtype=np.float32)
    for word in absorbed:
        W_enc[own[word], LABELS[word]] = -delta / strength
        W_dec[own[word], LABELS[word]] = delta / strength
    zeros = np.zeros(C + n, np.float32)
    d = sae.Dictionary(
        sae.Parameters(W_enc, zeros, W_dec, zeros), sae.DictionaryConfig(C + n, C + n)
    )
    np.testing.assert_allclose(d(x), x, atol=1e-6)
    return d, x


PROBES = np.eye(len(LETTERS), len(LETTERS) + len(WORDS))
SPLIT = [[0], [1], [2]]
ABSORBED = [*range(10), *range(N, N + 5)]  # 10 of 40, 5 of 40, none


def test_absorption_that_is_built_in_is_found_and_none_where_there_is_none():
    d, x = world(ABSORBED)
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT, letters=LETTERS)
    for name in ("full", "fraction", "silent"):
        np.testing.assert_allclose(found[name], [10 / N, 5 / N, 0], err_msg=name)
    recall = np.array([30 / N, 35 / N, 1])
    np.testing.assert_allclose(found.f1, 2 * recall / (1 + recall))
    assert found.words.values.tolist() == [N] * 3
    assert found.split.values.tolist() == [1] * 3
    assert np.flatnonzero(found.absorbed).tolist() == ABSORBED
    assert found.absorber[ABSORBED].values.tolist() == [3 + word for word in ABSORBED]
    assert found.label[[0, N, -1]].values.tolist() == ["a", "b", "c"]
    assert found.sel(letter="b").full == 5 / N
    d, x = world()
    none = room.absorption_rates(d, x, LABELS, PROBES, SPLIT)
    for name in ("full", "fraction", "silent"):
        assert (none[name] == 0).all()
    assert (none.f1 == 1).all()


def test_absorption_in_part_counts_from_a_share_of_the_probe_on():
    d, x = world(ABSORBED, delta=0.6)
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT)
    assert (found.full == 0).all()  # the letter's feature fires, weakly
    assert (found.silent == 0).all()
    np.testing.assert_allclose(found.fraction, [0.6 * 10 / N, 0.6 * 5 / N, 0], rtol=1e-5)
    d, x = world(ABSORBED, delta=0.3)
    assert (room.absorption_rates(d, x, LABELS, PROBES, SPLIT).fraction == 0).all()
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT, share=0.0)
    np.testing.assert_allclose(found.fraction, [0.3 * 10 / N, 0.3 * 5 / N, 0], rtol=1e-5)


def test_the_cosines_that_absorbing_features_need():
    d, x = world(ABSORBED, strength=20.0)  # their cosine is 0.05
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT)
    np.testing.assert_allclose(found.full, [10 / N, 5 / N, 0])
    assert (found.fraction == 0).all()
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT, cosine=0.06, part_cosine=-1)
    assert (found.full == 0).all()
    np.testing.assert_allclose(found.fraction, [10 / N, 5 / N, 0])


def test_only_words_count_whose_probe_is_right():
    d, x = world(ABSORBED)
    bias = [0.0, -2.0, 0.0]  # the second probe never says its letter
    found = room.absorption_rates(d, x, LABELS, PROBES, SPLIT, probe_bias=bias)
    assert found.words.values.tolist() == [N, 0, N]
    assert np.isnan(found.full[1])
    assert not found.right[N : 2 * N].any()
    assert not found.absorbed[N : 2 * N].any()
    # Twice the letter's feature as an offset: nothing is left for features to write.
    moved = room.absorption_rates(d, x, LABELS, PROBES, SPLIT, about=2 * PROBES.sum(0))
    assert (moved.full == 0).all()
    assert (moved.fraction == 0).all()


def slow(d, x, labels, rows, split, bias, about, cosine, share, part_cosine, most):
    """Word by word, feature by feature: rates of full absorption and mean fractions, by letter.

    And the cases of the definition that occurred.
    """
    cases = set()
    f, W = np.asarray(d.encode(x), float), np.asarray(d.params.W_dec, float)
    full, fraction = [[] for _ in rows], [[] for _ in rows]
    for word, y in enumerate(labels):
        if sum(a * b for a, b in zip(x[word], rows[y], strict=True)) + bias[y] <= 0:
            continue
        unit = rows[y] / np.sqrt((rows[y] ** 2).sum())
        total = float((x[word] - about) @ unit)
        written, cosines = {}, {}
        for j in range(len(W)):
            written[j] = f[word, j] * float(W[j] @ unit)
            cosines[j] = float(W[j] @ unit) / np.sqrt((W[j] ** 2).sum())
        top = max(written, key=written.get)
        silent = all(f[word, j] == 0 for j in split[y])
        absorbed = silent and total > 0 and written[top] > 0 and cosines[top] >= cosine
        full[y].append(absorbed and written[top] / total >= share)
        able = [
            written[j] for j in written
            if j not in split[y] and written[j] > 0 and cosines[j] >= part_cosine
        ]  # fmt: skip
        A = sum(sorted(able, reverse=True)[: most or len(able)])
        M = sum(written[j] for j in split[y])
        if total <= 0:
            case, part = "the probe is not there", 0
        elif total <= M:
            case, part = "the split writes all of it", 0
        elif A == 0 or A / total < share:
            case, part = "others write too little", 0
        elif M <= 0:
            case, part = "others alone write it", 1
        else:
            case = "others write the rest" if total < M + A else "others write some"
            part = min(A, total - M) / (min(A, total - M) + M)
        cases.add(case)
        fraction[y].append(part)
    return [np.mean(v) for v in full], [np.mean(v) for v in fraction], cases


@pytest.mark.parametrize(
    ("cosine", "share", "part_cosine", "most"),
    [(0.025, 0.4, 0.1, 3), (0.3, 0.1, -1, None), (-1, 0.0, 0.3, 1)],
)
def test_absorption_is_as_defined_word_by_word(cosine, share, part_cosine, most):
    d = dictionary(bias=-0.5)
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(700, 8)).astype(np.float32), rng.integers(0, 3, 700)
    split = [[2], [5, 1], [7, 3, 0]]
    rows = np.asarray(d.params.W_dec)[[2, 5, 7]] + rng.normal(size=(3, 8)) / 3
    bias, about = np.array([0.3, 0.6, 0.9]), rng.normal(size=8) / 3
    thresholds = {"cosine": cosine, "share": share, "part_cosine": part_cosine, "most": most}
    found = room.absorption_rates(
        d, x, labels, rows, split, probe_bias=bias, about=about, **thresholds
    )
    full, fraction, cases = slow(d, x, labels, rows, split, bias, about, **thresholds)
    np.testing.assert_allclose(found.full, full)
    np.testing.assert_allclose(found.fraction, fraction, rtol=1e-5)
    assert (np.array(full) > 0).any()
    assert len(cases) == 6
    assert ((found.part > 0) & (found.part < 1)).any()
    fires = np.asarray(d.encode(x)) > 0
    for letter, features in enumerate(split):
        expected = f1_score(labels == letter, fires[:, features].any(1))
        np.testing.assert_allclose(found.f1[letter], expected)
    assert found.split.values.tolist() == [1, 2, 3]


def spelled_features(seed=0, n=300, F=12):
    """Activations that are features: one letter has two, one has one, the last one that errs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    half = rng.random(n) < 0.5
    x = rng.exponential(size=(n, F)) * (rng.random((n, F)) < 0.1)
    x[:, 4] += 3 * ((labels == 0) & half)
    x[:, 9] += 5 * ((labels == 0) & ~half)
    x[:, 2] += 1.0 * (labels == 1)
    x[:, 7] += 2 * ((labels == 2) & (rng.random(n) < 0.7))
    x *= np.geomspace(30, 0.1, F)
    identity, zeros = np.eye(F, dtype=np.float32), np.zeros(F, np.float32)
    d = sae.Dictionary(sae.Parameters(identity, zeros, identity, zeros), sae.DictionaryConfig(F, F))
    return d, x.astype(np.float32), labels, rng.permutation(np.arange(n) % 3)


@pytest.mark.parametrize("tau", [0.03, 0.5])
def test_sparse_probes_are_scikit_learns_one_by_one(tau):
    d, x, labels, part = spelled_features()
    train, held, penalty, K = part == 0, part == 1, 1e-2, 5
    found = room.split_features(d, x, labels, train, held, tau=tau, max_k=K, penalty=penalty)
    for letter in range(3):
        y = labels == letter
        score = [
            (x[train & y, j].mean() - x[train & ~y, j].mean()) / x[train, j].std()
            for j in range(x.shape[1])
        ]
        order = sorted(range(x.shape[1]), key=lambda j: -score[j])
        assert found.ranked[letter].tolist() == order[:K]
        weights = np.where(y[train], 0.5 / y[train].mean(), 0.5 / (1 - y[train].mean()))
        taken, before = None, 0.0
        for k in range(1, K + 1):
            own = x[:, order[:k]].astype(float)
            scaler = StandardScaler().fit(own[train], sample_weight=weights)
            probe = LogisticRegression(
                C=1 / (train.sum() * penalty), class_weight="balanced", tol=1e-10, max_iter=10_000
            ).fit(scaler.transform(own[train]), y[train])
            f1 = f1_score(y[held], probe.predict(scaler.transform(own[held])))
            np.testing.assert_allclose(found.f1[letter, k - 1], f1)
            if taken is None and k > 1 and f1 <= before + tau:
                taken = k - 1
            before = f1
        assert found.features[letter].tolist() == order[: taken or K]
    assert set(found.features[0].tolist()) == ({4, 9} if tau < 0.1 else {9})
    assert found.features[1].tolist() == [2]


def test_words_probes_and_split_features_find_what_is_built_in():
    absorbed = np.arange(len(WORDS)) % 4 == 0
    absorbed[2 * N :] = False
    d, x = world(np.flatnonzero(absorbed))
    spelled = task.Spelling.fit(WORDS, x, min_letters=3, seed=1)
    assert spelled.accuracy == 1
    found = spelled.measure(d)
    assert found.split.values.tolist() == [1] * 3
    assert found.feature[:, 0].values.tolist() == [0, 1, 2]
    assert (found.feature[:, 1:] == -1).all()
    test = spelled.splits.test[0]
    for name in ("full", "fraction", "silent"):
        for letter in range(3):
            expected = absorbed[test & (letter == LABELS)].mean()
            np.testing.assert_allclose(found[name][letter], expected, err_msg=name)
    assert 0 < found.full[0] < 1
    assert found.text.values.tolist() == [w for w, kept in zip(WORDS, test, strict=True) if kept]
    assert found.text[found.absorbed].values.tolist() == [
        w for w, kept, hidden in zip(WORDS, test, absorbed, strict=True) if kept and hidden
    ]
    for part in (found.probe_f1, found.letter.str.len()):
        assert (part == 1).all()
    none = spelled.measure(world()[0])
    assert (none.full == 0).all()
    assert (none.fraction == 0).all()
    assert (none.sparse_f1 == 1).all()


def test_letters_that_are_not_known_are_left_out_or_refused():
    _, x = world()
    second = np.flatnonzero(LABELS == 1)  # half of them look like the first, half like the third
    x[second, 1] = 0
    x[second, 2 * (second % 2)] = 1
    rare = [*WORDS, "d0", "d1"]
    x = np.concatenate([x, x[:2]])
    d, _ = world()
    spelled = task.Spelling.fit(rare, x, min_letters=2)
    found = spelled.measure(d)
    assert found.letter.values.tolist() == ["a", "c"]
    assert set(found.label.values.tolist()) == {"a", "c"}
    with pytest.raises(ValueError, match=r"accuracy is 0\.\d+, and 2 of 3 letters"):
        task.Spelling.fit(rare, x, min_letters=3)
    with pytest.raises(ValueError, match="3 letters have 10 words or more"):
        task.Spelling.fit(rare, x, min_letters=4)
    with pytest.raises(ValueError, match="begin with a letter"):
        task.Spelling.fit(["7", *rare[1:]], x)


@pytest.mark.parametrize("hierarchy", [True, False])
def test_training_for_sparsity_absorbs_a_feature_into_its_child(hierarchy):
    """The toy model of Chanin et al.: four features in 50 dimensions; one implies another."""
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 4)))[0].T

    def draw(rng, n=256):
        fires = rng.random((n, 4)) < [0.25, 0.2 if hierarchy else 0.05, 0.05, 0.05]
        fires[:, 1] &= fires[:, 0] | (not hierarchy)
        return fires, (fires @ directions).astype(np.float32)

    rng = np.random.default_rng(1)
    found = sae.train(
        sae.DictionaryConfig(50, 4), (draw(rng)[1] for _ in itertools.count()),
        sae.TrainingConfig(1500, unit_norm=True),
        sae.Hyperparameters(learning_rate=3e-3, sparsity=1.0, seed=np.arange(4)),
    )  # fmt: skip
    fires, x = draw(np.random.default_rng(2), 4000)
    fires, x = fires[fires[:, 0]], x[fires[:, 0]]
    for d in found.dictionaries:
        parent = int((np.asarray(d.params.W_enc).T @ directions[0]).argmax())
        measured = room.absorption_rates(d, x, np.zeros(len(x), int), directions[:1], [[parent]])
        expected = fires[:, 1].mean() if hierarchy else 0.0
        np.testing.assert_allclose(measured.full, expected)


def fake_tokenizer(words, template=((), ())):
    pieces = ["[UNK]", *(f"\u2581{p}" for p in (*words, "has", "the", "first", "letter:"))]
    backend = tokenizers.Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, template=template)


TINY = ["".join(w) for w in itertools.product("abc", "aeiou", "lmnrst")]  # 30 of a letter


def tiny(planted=6.0, family="llama", template=((), ())):
    """A model whose embedding tells words' first letters, each along an axis, and its tokenizer."""
    tokenizer = fake_tokenizer(TINY, template)
    config = CONFIGS[family].replace(vocab_size=tokenizer.vocab_size, d_model=16, n_ctx=30)
    model = ji.init(config, jax.random.key(0))
    W_E = 0.3 * np.random.default_rng(0).normal(size=(config.vocab_size, 16)).astype(np.float32)
    for i, word in enumerate(TINY):
        W_E[1 + i, "abc".index(word[0])] += planted
    embed = model.params.embed.replace(W_E=W_E)
    return model.replace(params=model.params.replace(embed=embed)), tokenizer


def letter_dictionary(planted=6.0):
    """An SAE of the tiny model's stream with one feature for each letter, which fires rightly."""
    W_enc = np.eye(16, 3, dtype=np.float32)
    params = sae.Parameters(
        W_enc, np.full(3, -planted / 2, np.float32), W_enc.T, np.zeros(16, np.float32)
    )
    return sae.Dictionary(params, sae.DictionaryConfig(16, 3, site="resid_post", layers=(0,)))


def test_from_a_model_to_rates():
    model, tokenizer = tiny()
    d = letter_dictionary()
    assert task.vocabulary_words(tokenizer) == sorted(
        f" {w}" for w in [*TINY, "has", "the", "first"]
    )
    options = {"words": TINY, "examples": 2, "min_letters": 3}
    done = []
    spelled = task.fit_spelling(model, tokenizer, "resid_post", 0, on_done=done.append, **options)
    assert sum(done) == len(TINY) - 2
    shown = json.loads(spelled.attrs["examples"])
    assert not set(shown) & set(spelled.words)
    text = "".join(f"{w} has the first letter: {w[1].upper()}\n" for w in shown)
    for word in (0, 17, 80):
        prompt = f"{text}{spelled.words[word]} has the first letter:"
        out = ji.forward(model, tokenizer([prompt]), record=("resid_post",))
        expected = out.activations["resid_post"][0, 0, -5]
        np.testing.assert_allclose(spelled.x[word], expected, atol=1e-5)
    found = task.first_letter(model, d, tokenizer, max_k=2, **options)
    np.testing.assert_array_equal(found.full, [0, 0, 0])
    np.testing.assert_array_equal(found.silent, [0, 0, 0])
    np.testing.assert_array_equal(found.f1, [1, 1, 1])
    assert found.feature[:, 0].values.tolist() == [0, 1, 2]
    assert found.attrs["layer"] == 0
    assert found.attrs["accuracy"] == 1
    again = spelled.measure(d, max_k=2)
    assert again.identical(found)
    drawn = task.fit_spelling(
        model, tokenizer, "resid_post", 0, words=60, examples=1, min_letters=3
    )
    assert len(drawn.words) <= 60


def test_an_encoder_sees_the_whole_prompt():
    model, tokenizer = tiny(family="encoder", template=((3,), (4,)))
    spelled = task.fit_spelling(
        model, tokenizer, "mlp_out", 1, words=TINY, examples=1, min_letters=0, batch=7
    )
    (shown,) = json.loads(spelled.attrs["examples"])
    text = f"{shown} has the first letter: {shown[1].upper()}\n"
    for word in (3, 88):
        prompt = f"{text}{spelled.words[word]} has the first letter:"
        out = ji.forward(model, tokenizer([prompt]), record=("mlp_out",))
        np.testing.assert_allclose(spelled.x[word], out.activations["mlp_out"][1, 0, -6], atol=1e-5)


def test_a_model_that_does_not_know_letters_is_refused():
    model, tokenizer = tiny(planted=0.0)
    with pytest.raises(ValueError, match=r"probes' accuracy is 0\.\d+, and \d of 3 letters"):
        task.first_letter(
            model, letter_dictionary(), tokenizer, words=TINY, examples=2, min_letters=3, max_k=1
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:-1]}, "a whole number from 0 on for each of 120 words"),
        ({"labels": LABELS + 1}, "labels go up to 3; there are 3 probes"),
        ({"probe_rows": PROBES[:2]}, r"expected \[3, 123\]"),
        ({"probe_rows": 0 * PROBES}, "probe of letter 0 has no length"),
        ({"split": [[0], [], [2]]}, "No feature stands for letter 1"),
        ({"split": [[0], [1], [123]]}, "expected numbers from 0 to 122"),
        ({"x": PROBES}, "one for each|for each of 3 words"),
        ({"x": np.full((120, 123), np.nan)}, "finite activations"),
        ({"most": 0}, "most=0"),
        ({"d": dictionary(d_in=123, kind="transcoder")}, "this is a transcoder"),
    ],
)
def test_bad_input(change, message):
    d, x = world()
    given = {"d": d, "x": x, "labels": LABELS, "probe_rows": PROBES, "split": SPLIT} | change
    with pytest.raises(ValueError, match=message):
        room.absorption_rates(**given)


def test_bad_input_of_splits_and_of_the_task():
    d, x, labels, part = spelled_features()
    with pytest.raises(ValueError, match=r"by letter: \[0, "):
        room.split_features(d, x, labels, (part == 0) & (labels > 0), part == 1)
    with pytest.raises(ValueError, match=r"max_k=13, expected .* from 1 to 12"):
        room.split_features(d, x, labels, part == 0, part == 1, max_k=13)
    model, tokenizer = tiny()
    run = {"model": model, "tokenizer": tokenizer, "site": "resid_post", "layer": 0}
    for change, message in (
        ({"prompt": "Spell:"}, "expected one {word}"),
        ({"examples": 0}, "give examples"),
        ({"words": ["xyz", *TINY]}, "not in the vocabulary"),
        ({"words": 500}, "expected 10 examples and 500 words"),
        ({"site": "pattern"}, "expected a vector in each layer"),
        ({"layer": 3}, "layer=3, expected .* from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            task.fit_spelling(**{**run, **change})
    with pytest.raises(ValueError, match="reads and writes one site"):
        task.first_letter(model, world()[0], tokenizer)
