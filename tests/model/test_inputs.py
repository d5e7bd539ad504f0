"""Tokens: every form in which they may be given, and what is refused at the door."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, small_model

import jaxinterp as ji
from jaxinterp.checks import narrowed
from jaxinterp.model import Tokens, as_tokens, forward, shapes
from jaxinterp.model.inputs import check_tokens

ROWS = [[3, 1, 4, 1, 5], [9, 2, 6]]
MASKS = {
    "right": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "left": np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
}


def padded(side):
    """`ROWS` as ids [2 5], with a real token's id at padding, and the attention mask."""
    ids, mask = np.full((2, 5), 7), MASKS[side]
    for row, keep, own in zip(ids, mask, ROWS, strict=True):
        row[keep.astype(bool)] = own
    return ids, mask


class Foreign:
    """An array of another library: it has no more than ``__array__``."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


FORMS = {
    "arguments": lambda ids, mask: Tokens.of(ids, mask),
    "booleans": lambda ids, mask: Tokens.of(ids, mask.astype(bool)),
    "lists": lambda ids, mask: Tokens.of(ids.tolist(), mask.tolist()),
    "jax": lambda ids, mask: Tokens.of(jnp.asarray(ids), jnp.asarray(mask)),
    "foreign arrays": lambda ids, mask: Tokens.of(Foreign(ids), Foreign(mask)),
    "uint8": lambda ids, mask: Tokens.of(ids.astype(np.uint8), mask.astype(np.uint8)),
    "traced": lambda ids, mask: jax.jit(Tokens.of)(ids, mask),
    "dict": lambda ids, mask: as_tokens({"input_ids": ids, "attention_mask": mask}),
    "encoding": lambda ids, mask: as_tokens(
        collections.UserDict(
            input_ids=Foreign(ids), attention_mask=Foreign(mask), token_type_ids=None
        )
    ),
}


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_ids_and_a_mask_are_the_prompts_alone(form, side):
    tokens = FORMS[form](*padded(side))
    assert tokens.ids.dtype == tokens.positions.dtype == np.int32
    np.testing.assert_array_equal(tokens.mask, MASKS[side])
    np.testing.assert_array_equal(tokens.lengths, [5, 3])
    out = forward(small_model("gpt2"), tokens).logits
    for i, row in enumerate(ROWS):
        alone = forward(small_model("gpt2"), [row]).logits[0]
        np.testing.assert_allclose(out[i][MASKS[side][i].astype(bool)], alone, atol=1e-5)


def test_a_dict_goes_into_forward_as_it_is():
    ids, mask = padded("left")
    model = small_model("gpt2")
    want = forward(model, Tokens.of(ids, mask)).logits
    np.testing.assert_array_equal(
        forward(model, {"input_ids": ids, "attention_mask": mask}).logits, want
    )
    one = forward(model, {"input_ids": ROWS[0], "attention_mask": [1] * 5}).logits
    np.testing.assert_allclose(one[0], want[0], atol=1e-5)


@pytest.mark.parametrize("rows", [ROWS, tuple(map(np.array, ROWS)), list(map(jnp.array, ROWS))])
def test_lists_of_unequal_length_are_padded_on_the_right(rows):
    tokens = as_tokens(rows)
    np.testing.assert_array_equal(tokens.positions, [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]])
    np.testing.assert_array_equal(tokens.ids, [[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    whole = {"input_ids": rows, "attention_mask": [[1] * 5, [1] * 3]}
    of = Tokens.of({**whole, "token_type_ids": [[0, 0, 0, 1, 1], [0, 1, 1]]})
    np.testing.assert_array_equal(of.positions, tokens.positions)
    np.testing.assert_array_equal(of.types, [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])


def test_types_of_an_encoding_are_used():
    model, ids = small_model("bert"), padded("right")[0]
    types = ids % 2
    want = forward(model, as_tokens(ids).replace(types=types)).logits
    got = forward(model, {"input_ids": ids, "token_type_ids": types}).logits
    np.testing.assert_array_equal(got, want)
    assert np.abs(got - forward(model, ids).logits).max() > 0.01
    got = forward(small_model("gpt2"), Tokens.of(ids, types=0 * ids)).logits  # none but 0: no harm
    np.testing.assert_array_equal(got, forward(small_model("gpt2"), ids).logits)


IDS, MASK = padded("right")
HOLE = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])
FAR = np.array([[1, 2**32 + 5]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokens(IDS, MASK), r"positions of prompt 0 are \[1 1 1 1 1\].*Tokens.of\(ids, m"),
        (lambda: Tokens(IDS, MASK.astype(bool)), r"positions.*bool\[2, 5\].*Tokens.of\(ids, mask"),
        (lambda: Tokens(IDS, MASKS["left"] * 0 - 1), "Prompt 0 is all padding"),
        (lambda: Tokens(IDS, np.arange(5)), r"positions of the tokens are int64\[5\]"),
        (lambda: Tokens(IDS, np.tile(np.arange(5.0), (2, 1))), "float64.*expected integers"),
        (lambda: Tokens(IDS[:1], [[0, 1, -1, 2, 3]]), r"\[0 1 -1 2 3\], expected 0, 1, 2"),
        (lambda: Tokens(IDS[:1], [[0, 1, 2, 3, -2]]), r"\[0 1 2 3 -2\], expected 0, 1, 2"),
        (lambda: Tokens(IDS[:1], [[1, 2, 3, 4, 5]]), r"\[1 2 3 4 5\], expected 0, 1, 2"),
        (lambda: Tokens(IDS[:1], [[0, 1, 2, 3, 2**33]]), "position 8589934592 is out of range"),
        (lambda: Tokens(IDS[0], np.arange(5)), r"shape \[5\], expected a non-empty \[batch, pos"),
        (lambda: as_tokens(IDS).replace(types=IDS), "Token type 9 is not among the 0 of this gpt2"),
        (lambda: as_tokens(IDS).replace(types=IDS[:1] * 0), r"types .* int64\[1, 5\]"),
        (lambda: Tokens.of(IDS, HOLE), r"mask of prompt 1 has padding between .*\[1 0 1 1 1\]"),
        (lambda: Tokens.of(IDS, MASK * 2), r"int64 with values \[0, 2\], expected booleans, or"),
        (lambda: Tokens.of(IDS, MASK * 1.0), "float64 with values .* expected booleans, or"),
        (lambda: Tokens.of(IDS, MASK[:, :4]), r"mask has shape \[2, 4\], expected \[2, 5\]"),
        (lambda: Tokens.of(IDS, MASK[[0, 0]] * [[1], [0]]), "Prompt 1 is all padding"),
        (lambda: Tokens.of({"input_ids": IDS}, MASK), "give it alone"),
        (lambda: {"ids": IDS}, "has 'ids', expected 'input_ids' and.*'attention_mask'"),
        (lambda: {"attention_mask": MASK}, "has no 'input_ids'"),
        (lambda: {"input_ids": IDS, "labels": IDS}, "has 'labels', expected"),
        (lambda: [[1, 2], []], r"Prompt 1 is \[\], expected a list of at least one token id"),
        (lambda: [[1, 2], [[1], [2], [3]]], "Prompt 1 is .*expected a list of at least one"),
        (lambda: [["The"], ["cat", "sat"]], "tokens are text, 'The'"),
        (lambda: FAR, "Token id 4294967301 is out of range"),
        (lambda: FAR.astype(np.uint64), "Token id 4294967301 is out of range"),
        (lambda: FAR.tolist(), "Token id 4294967301 is out of range"),
        (lambda: Tokens(FAR, [[0, 1]]), "Token id 4294967301 is out of range"),
        (lambda: -FAR, "Token id -4294967301 is out of range"),
        (lambda: [[2**70]], "tokens are object, expected integers"),
        (lambda: [[1.0, 2.0]], "tokens are float64, expected integers"),
        (lambda: [[True, False]], "tokens are bool, expected integers"),
        (lambda: np.array([[200]], np.uint8), "Token id 200 is outside the vocabulary of 17"),
    ],
)  # fmt: skip
def test_wrong_forms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        forward(small_model("gpt2"), make())


def test_values_are_finite():
    model = ji.init(CONFIGS["gpt2"], jax.random.key(0))
    x = np.zeros((2, 3, 17), np.float32)
    forward(model, x)
    x[1, 2, 4] = np.nan
    with pytest.raises(ValueError, match="inputs of prompt 1 hold NaN or an infinity"):
        forward(model, x)


def test_narrow_ids_do_not_narrow_what_is_generated():
    """uint8 ids in, and new tokens beyond 255 out: they were wrapped into 8 bits."""
    model = ji.init(CONFIGS["gpt2"].replace(vocab_size=600, head="untied"), jax.random.key(3))
    model = model.replace(
        params=model.params.replace(
            head=model.params.head.replace(W_U=model.params.head.W_U.at[:, :256].set(0) * 10)
        )
    )
    ids = np.array([[3, 1, 4], [200, 7, 9]])
    want = ji.generate(model, ids, 3).new
    assert (np.asarray(want) > 255).all()
    np.testing.assert_array_equal(ji.generate(model, ids.astype(np.uint8), 3).new, want)


def test_tokens_pass_through_transformations():
    ids = jnp.asarray([[3, 1, 4], [1, 5, 9]])
    tokens, model = as_tokens(ids), small_model("gpt2")
    want = forward(model, tokens).logits
    np.testing.assert_allclose(jax.jit(forward)(model, tokens).logits, want, atol=1e-5)
    each = jax.vmap(lambda row: forward(model, row[None]).logits[0])(ids)
    np.testing.assert_allclose(each, want, atol=1e-5)
    shape = jax.eval_shape(lambda t: forward(model, t).logits, tokens)
    assert shape.shape == (2, 3, 17)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tokens)
    assert as_tokens(abstract) == abstract
    check_tokens(model.config, abstract)
    marked = jax.tree.map(lambda leaf: object(), tokens)
    assert as_tokens(marked) is marked
    assert jax.tree.structure(marked) == jax.tree.structure(tokens)
    assert shapes(model.config).embed.W_E.shape == (17, 8)


def test_some_columns_are_no_prompt_but_pass_the_stages():
    model, ids = small_model("llama"), np.array([[3, 1, 4], [1, 5, 9]])
    whole, _ = ji.embed(model, ids)
    late = Tokens(ids[:, 1:], np.array([[1, 2], [1, 2]]))
    part, _ = ji.embed(model, late)
    np.testing.assert_array_equal(part, whole[:, 1:])


def test_integers_are_narrowed_only_where_they_fit():
    for dtype in (np.uint8, np.int16, np.uint32, np.int64, np.uint64):
        out = narrowed("index", np.array([0, 5], dtype))
        assert out.dtype == np.int32
        assert out.tolist() == [0, 5]
    for bad in (2**31, -(2**31) - 1, 2**32 + 5):
        with pytest.raises(ValueError, match=f"index {bad} is out of range"):
            narrowed("index", np.array([0, bad]))
    with pytest.raises(ValueError, match=f"index {2**31} is out of range"):
        narrowed("index", np.array([2**31], np.uint32))


def with_leaf(model, value):
    attn = model.params.blocks.attn.replace(W_Q=value)
    return model.replace(params=model.params.replace(blocks=model.params.blocks.replace(attn=attn)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: with_leaf(m, m.params.blocks.attn.W_Q[:, :, :7]),
         r"params\.blocks\.attn\.W_Q of .* has shape \[3, 4, 7, 6\], expected \[3, 4, 8, 6\]"),
        (lambda m: with_leaf(m, None), r"has no params\.blocks\.attn\.W_Q.* shape \[3, 4, 8, 6\]"),
        (lambda m: with_leaf(m, np.ones((3, 4, 8, 6), int)), r"W_Q of .* is int\d+, expected a fl"),
        (lambda m: m.replace(config=m.config.replace(bias_o=False)),
         r"has a params\.blocks\.attn\.b_O, and its config has none"),
        (lambda m: m.replace(config=m.config.replace(n_layers=2)), r"expected \[2, "),
    ],
)  # fmt: skip
def test_a_model_has_the_arrays_of_its_config(change, message, tmp_path):
    model = small_model("gpt2")
    wrong, ids = change(model), np.array([[3, 1, 4]])
    grid, answer = ji.zero("z", layer=np.arange(2)), ji.logit(4)
    uses = (
        lambda: forward(wrong, ids),
        lambda: ji.evaluate(answer, wrong, ids),
        lambda: ji.sweep(wrong, ids, grid, answer),
        lambda: ji.generate(wrong, ids, 2),
        lambda: ji.run_layers(wrong, np.zeros((1, 3, 8), np.float32), ids),
        lambda: ji.save(tmp_path / "model", wrong),
    )
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use()
    assert not list(tmp_path.iterdir())


def test_models_may_be_batched_mixed_and_abstract():
    model, ids = small_model("gpt2"), np.array([[3, 1, 4]])
    want = forward(model, ids).logits
    pair = jax.tree.map(lambda a: np.stack([a, 2 * a]), model)
    got = jax.vmap(lambda m: forward(m, ids).logits)(pair)
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    half = with_leaf(model, jnp.asarray(model.params.blocks.attn.W_Q, jnp.bfloat16))
    np.testing.assert_allclose(forward(half, ids).logits, want, atol=0.1)
    abstract = jax.eval_shape(lambda m: m, model)
    assert jax.eval_shape(lambda m: forward(m, ids).logits, abstract).shape == (1, 3, 17)
    slopes = jax.grad(lambda m: forward(m, ids).logits.sum())(model)
    assert jax.tree.structure(slopes) == jax.tree.structure(model)
    marked = jax.tree.map(lambda leaf: None, model)
    assert jax.tree.leaves(marked) == []


BAD_CONFIGS = [
    (lambda d: d | {"heads": 3}, "A config has no field 'heads'"),
    (lambda d: {k: v for k, v in d.items() if k != "n_heads"}, "A config lacks n_heads"),
    (lambda d: d | {"n_heads": 0}, "n_heads=0, expected a whole number from 1"),
    (lambda d: d | {"n_layers": 10**9}, "n_layers=1000000000, expected .* from 0 to 100000"),
    (lambda d: d | {"causal": "false"}, "causal='false', expected one of True, False"),
    (lambda d: d | {"act": "swish"}, "act='swish', expected one of 'gelu'"),
    (lambda d: d | {"windows": 3}, "windows=3, expected a list"),
    (lambda d: d | {"rotary": [{"dim": 6, "theta": -1.0}]}, "theta=-1.0, expected"),
    (lambda d: d | {"rotary": [{"dim": 6, "base": 1.0}]}, "rotary layer has no field 'base'"),
    (lambda d: d | {"rotary": [{"dim": 6, "scaling": ["linear", -2.0]}]}, "factor=-2.0, expected"),
    (lambda d: d | {"rotary": [{"dim": 7}]}, "dim=7, expected an even number"),
    (lambda d: d | {"rotary": [{"dim": 8}]}, "dim=8.*expected a Rotary of at most 6"),
    (lambda d: d | {"rotary": [3]}, "rotary layer is 3, expected a mapping"),
    (lambda d: [1], r"A config is \[1\], expected a mapping"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS)
def test_configs_of_strangers_are_read_or_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ji.Config.from_dict(change(CONFIGS["llama"].to_dict()))
