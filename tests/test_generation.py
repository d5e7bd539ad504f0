"""`generate`: what recomputing the whole text for every token gives, from a cache."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import struct
from small_models import CONFIGS, ragged, sites_of, small_model, with_long
from tiny_tokenizers import word_tokenizer

from jaxinterp.generation import run as generation
from jaxinterp.interventions import add, project_out, replace, scale, zero
from jaxinterp.model import as_tokens, compiled, forward, init

PROMPTS = [[3, 1, 4, 1, 5], [6, 5, 3], [8, 9, 7, 9]]
LENGTHS = [len(prompt) for prompt in PROMPTS]
EVEN = np.array([[3, 1, 4, 1, 5, 9], [6, 5, 3, 5, 8, 9]])
N = 5  # longer than a window
STEER = np.random.default_rng(0).standard_normal(8).astype(np.float32)
SIDES = ("left", "right")


def generate(model, tokens, n_new=N, **options):
    """In NumPy: slicing compiles nothing."""
    return jax.device_get(generation.generate(model, tokens, n_new, **options))


def batch(side):
    """Longer than the longest prompt by a column: every row is padded."""
    return ragged(PROMPTS, side, 6)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def plain(name, prompt):
    return recomputed(name, prompt)


def recomputed(name, prompt, edit=oracle.unedited):
    """Greedy tokens of one unpadded prompt and their log-probabilities, without a cache.

    A NumPy forward of the whole text for every token.
    """
    text, log_probs = list(prompt), []
    for _ in range(N):
        row = log_softmax(oracle.forward(small_model(name), text, edit=edit)[0][-1])
        text.append(int(row.argmax()))
        log_probs.append(row.max())
    return text, log_probs


def assert_recomputed(out, name, edit=None):
    """``edit(b)`` is the oracle's edit in a prompt."""
    for b, prompt in enumerate(PROMPTS):
        text, log_probs = recomputed(name, prompt, edit(b)) if edit else plain(name, tuple(prompt))
        row = out.tokens[b]
        assert row.ids[row.mask].tolist() == text
        np.testing.assert_allclose(out.log_probs[b], log_probs, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(row.positions[row.mask], np.arange(len(text)))


# Without interventions


@pytest.mark.parametrize("name", with_long("gpt2"))
def test_greedy_is_recomputing_every_token_in_padded_batches(name):
    for side in SIDES:  # one program
        out = generate(small_model(name), batch(side))
        assert_recomputed(out, name)
        assert out.log_probs.dtype == np.float32
        assert out.lengths.tolist() == [N] * 3


def test_the_result_is_padded_on_the_left_and_new_tokens_are_its_last_columns():
    for side in SIDES:
        out = generate(small_model("llama"), batch(side), pad=11)
        for b, prompt in enumerate(PROMPTS):
            begin = 6 - len(prompt)
            assert out.tokens.ids[b, :6].tolist() == [11] * begin + prompt
            assert out.tokens.positions[b].tolist() == [-1] * begin + list(range(len(prompt) + N))
        np.testing.assert_array_equal(out.new, out.tokens.ids[:, 6:])


def test_token_types_of_the_prompt_are_read_and_kept():
    model = small_model("bert").replace(config=CONFIGS["bert"].replace(causal=True))
    out = generate(model, as_tokens(EVEN).replace(types=EVEN % 2))
    np.testing.assert_array_equal(out.tokens.types, np.pad(EVEN % 2, [(0, 0), (0, N)]))
    for (logits, _), new in zip(oracle.batch(model, out.tokens), out.new, strict=True):
        assert (logits[5:-1].argmax(-1) == new).all()


def assert_teacher_forced(out, model, interventions=(), tolerance=1e-5):
    """Log-probabilities are those of one forward over the whole text, and each is the largest."""
    expected = log_softmax(forward(model, out.tokens, interventions).logits[:, 5:-1])
    assert (expected.argmax(-1) == out.new).all()
    np.testing.assert_allclose(out.log_probs, expected.max(-1), rtol=0, atol=tolerance)


# With interventions


def acts(apply, length, position):
    """Whether an intervention acts at a position of a text whose prompt has that length."""
    return apply == "both" or (position < length) == (apply == "prompt")


def steering(apply):
    """The oracle's edit for adding `STEER` to the stream after layer 1."""

    def of_prompt(b):
        def edit(site, layer, value):
            if (site, layer) == ("resid_post", 1):
                for position in range(len(value)):
                    if acts(apply, LENGTHS[b], position):
                        value[position] += STEER
            return value

        return edit

    return of_prompt


@pytest.mark.parametrize(
    ("name", "apply"), [("llama", "both"), ("gemma2", "prompt"), ("gemma2", "generated")]
)
def test_steering_acts_where_it_is_told_to(name, apply):
    steer = add("resid_post", STEER, layer=1)
    for side in SIDES:
        out = generate(small_model(name), batch(side), interventions=steer, apply=apply)
        assert_recomputed(out, name, steering(apply))


@pytest.mark.parametrize("apply", ["both", "prompt", "generated"])
def test_a_zero_steering_vector_changes_nothing(apply):
    model, nothing = small_model("llama"), add("resid_post", np.zeros(8, np.float32), layer=1)
    key = jax.random.key(0)
    for sampling in ({}, {"temperature": 1.0, "key": key}):
        plain = generate(model, batch("left"), 4, **sampling)
        steered = generate(model, batch("left"), 4, interventions=nothing, apply=apply, **sampling)
        np.testing.assert_array_equal(steered.tokens.ids, plain.tokens.ids)
        np.testing.assert_array_equal(steered.log_probs, plain.log_probs)


def test_without_a_cache_means_forward_of_the_text_so_far():
    model, steer = small_model("neox"), add("resid_post", STEER, layer=1)
    text = list(PROMPTS[1])
    for _ in range(2):
        text.append(int(forward(model, [text], steer).logits[0, -1].argmax()))
    out = generate(model, [PROMPTS[1]], 2, interventions=[steer])
    assert out.tokens.ids[0].tolist() == text


@pytest.mark.parametrize("apply", ["prompt", "generated"])
def test_apply_is_a_mask_of_positions(apply):
    model = small_model("gpt2")
    masks = np.array([[acts(apply, n, p) for p in range(11)] for n in LENGTHS])
    at_all = [project_out("mlp_out", STEER), scale("pattern", 0.5, layer=1, head=2)]
    masked = [
        project_out("mlp_out", STEER, position=masks),
        scale("pattern", 0.5, layer=1, head=2, position=masks),
    ]
    part = generate(model, batch("right"), interventions=at_all, apply=apply)
    both = generate(model, batch("right"), interventions=masked)
    chex.assert_trees_all_equal(part, both)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_every_site_is_reached_in_both_kinds_of_pass(name):
    model = small_model(name)
    every = [scale(site, 0.9) for site in sites_of(model.config)]
    assert_teacher_forced(generate(model, EVEN, interventions=every), model, every)


def test_a_patched_position_of_the_prompt():
    model, position = small_model("llama"), np.array([3, 1, 2])
    twins = [[token + 1 for token in prompt] for prompt in PROMPTS]

    def of_prompt(b):
        given = oracle.forward(model, twins[b])[1]

        def edit(site, layer, value):
            if site == "embed":
                value[position[b]] = given["embed"][position[b]]
            elif (site, layer) == ("z", 1):
                value[position[b], 3] = given["z"][1, position[b], 3]
            return value

        return edit

    for side in SIDES:
        values = forward(model, ragged(twins, side, 6), record=["embed", "z"]).activations
        patches = [
            replace("embed", values["embed"], position=position),
            replace("z", values["z"], position=position, layer=1, head=3),
        ]
        out = generate(model, batch(side), interventions=patches)
        assert_recomputed(out, "llama", of_prompt)


def test_integer_positions_and_sources_may_lie_ahead():
    positions, sources = np.array([6, 5, 4]), np.array([6, 3, 5])  # after 5, 3 and 4 tokens

    def of_prompt(b):
        def edit(site, layer, value):
            if site == "resid_mid" and len(value) > positions[b]:
                value[positions[b]] += STEER
            if (site, layer) == ("pattern", 1) and value.shape[2] > sources[b]:
                value[2, :, sources[b]] = 0
            return value

        return edit

    steer = add("resid_mid", STEER, position=positions)
    knockout = zero("pattern", layer=1, head=2, source=sources)
    out = generate(small_model("llama"), batch("left"), interventions=(steer, knockout))
    assert_recomputed(out, "llama", of_prompt)


def test_changed_scores_attend_neither_to_padding_nor_to_what_is_to_come():
    def of_prompt(b):
        def edit(site, layer, value):
            if site == "attn_scores":
                value *= 0.9
                for position in range(LENGTHS[b], value.shape[1]):
                    value[1, position, : position + 1] = 0
            return value

        return edit

    new = np.arange(11) >= np.array(LENGTHS)[:, None]
    edits = [scale("attn_scores", 0.9), zero("attn_scores", head=1, position=new)]
    for side in SIDES:
        out = generate(small_model("llama"), batch(side), interventions=edits)
        assert_recomputed(out, "llama", of_prompt)


def test_recorded_values_of_the_whole_text_are_put_in_their_columns():
    model = small_model("gpt2")
    plain = generate(model, batch("left"))
    sites = ("embed", "attn_out")
    values = forward(model, plain.tokens, record=sites).activations
    same = [replace(site, values[site]) for site in sites]
    out = generate(model, batch("left"), interventions=same)
    np.testing.assert_array_equal(out.new, plain.new)
    np.testing.assert_allclose(out.log_probs, plain.log_probs, atol=1e-5)
    other = [replace(site, values[site][..., ::-1]) for site in sites]
    out = generate(model, batch("left"), interventions=other)
    assert_teacher_forced(out, model, other)


class Ramp(struct.PyTreeNode):
    """A user's own intervention, which acts by absolute position."""

    slope: float
    seen: object = struct.field(pytree_node=False, default=lambda positions: None)

    @property
    def sites(self):
        return ("resid_pre", "ln_final_scale")

    def __call__(self, value, at):
        if at.site == "ln_final_scale":
            jax.debug.callback(self.seen, at.positions)
            return value
        return value + self.slope * at.positions[..., None]


def test_a_users_own_intervention_sees_positions_within_the_prompt():
    calls = []
    ramp = Ramp(0.3, seen=lambda positions: calls.append(positions.tolist()))

    def edit(at, layer, value):
        return value + 0.3 * np.arange(len(value))[:, None] if at == "resid_pre" else value

    out = generate(small_model("llama"), batch("right"), interventions=ramp)
    jax.effects_barrier()
    assert_recomputed(out, "llama", lambda b: edit)
    assert sorted(calls) == sorted([[n - 1 + i] for n in LENGTHS] for i in range(N))


# Stopping


@pytest.mark.parametrize("ends", [[(0, 1), (0, 1), (1, 3)], [(0, 0), (1, 2), (2, 1)]])
def test_prompts_end_at_stop_tokens_and_the_loop_with_the_last(ends):
    free = generate(small_model("neox"), batch("left"))
    stop = [int(free.new[where]) for where in ends]
    calls = []
    count = Ramp(0.0, seen=lambda positions: calls.append(0))
    out = generate(small_model("neox"), batch("left"), interventions=count, stop=stop, pad=16)
    jax.effects_barrier()
    for b, row in enumerate(free.new.tolist()):
        n = next((i + 1 for i, token in enumerate(row) if token in stop), N)
        assert out.lengths[b] == n
        assert out.new[b].tolist() == row[:n] + [16] * (N - n)
        assert out.tokens.mask[b, 6:].tolist() == [True] * n + [False] * (N - n)
        np.testing.assert_allclose(out.log_probs[b, :n], free.log_probs[b, :n], atol=1e-6)
        assert (out.log_probs[b, n:] == 0).all()
    assert len(calls) == out.lengths.max()
    assert out.lengths.min() < N


# Sampling


def sample(prompts, n_new=N, seed=0, **options):
    options = {"temperature": 1.0, **options}
    return generate(small_model("llama"), prompts, n_new, key=jax.random.key(seed), **options)


def test_the_same_key_draws_the_same_and_another_does_not():
    first, again, other = (sample(batch("left"), seed=seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first.new != other.new).any()
    for b, (logits, _) in enumerate(oracle.batch(small_model("llama"), first.tokens)):
        expected = log_softmax(logits[-N - 1 : -1])[np.arange(N), first.new[b]]
        np.testing.assert_allclose(first.log_probs[b], expected, atol=1e-5)


def test_draws_depend_on_neither_companions_nor_padding_nor_n_new():
    together = sample(batch("left"))
    np.testing.assert_array_equal(sample(batch("right")).new, together.new)
    np.testing.assert_array_equal(sample([PROMPTS[0]], n_new=3).new[0], together.new[0, :3])


COPIES = 4000


@functools.cache
def next_log_probs():
    return log_softmax(oracle.forward(small_model("llama"), PROMPTS[0])[0][-1])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (2.5, None, None), (1.5, 4, 1.0), (1.5, 1, 1.0), (0.7, 99, 1.0),
     (1.5, 99, 0.7), (1.5, 99, 1e-6), (1.5, 5, 0.6)],
)  # fmt: skip
def test_draws_are_distributed_as_the_filtered_probabilities(temperature, top_k, top_p):
    p = np.exp(log_softmax(next_log_probs() / temperature))
    order = np.argsort(-p)
    allowed = order[: top_k or len(p)]
    if top_p is not None and top_p < 1:
        share = p[allowed] / p[allowed].sum()
        allowed = allowed[: np.searchsorted(np.cumsum(share), top_p) + 1]
    expected = np.zeros_like(p)
    expected[allowed] = p[allowed] / p[allowed].sum()
    drawn = sample(
        [PROMPTS[0]] * COPIES, n_new=1, temperature=temperature, top_k=top_k, top_p=top_p
    ).new[:, 0]
    count = np.bincount(np.asarray(drawn), minlength=len(p))
    assert (count[expected == 0] == 0).all()
    inside = expected * COPIES > 5
    deviation = (count - expected * COPIES)[inside] ** 2 / (expected * COPIES)[inside]
    # The mean of chi-square over its degrees of freedom is 1.
    assert deviation.sum() / max(inside.sum() - 1, 1) < 2.5


def test_a_tiny_temperature_and_zero_are_greedy_with_a_key_too():
    greedy = generate(small_model("llama"), batch("left"))
    for temperature in (0.0, 1e-6, 1e-38):
        drawn = sample(batch("left"), temperature=temperature)
        np.testing.assert_array_equal(drawn.new, greedy.new)
        np.testing.assert_allclose(drawn.log_probs, greedy.log_probs, atol=1e-6)


# One program


def test_values_of_one_shape_share_a_program(monkeypatch):
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(generation._generate.__wrapped__, n=1)
    again = compiled.jit(counted, static=("n_new", "apply"))
    monkeypatch.setattr(generation, "_generate", again)
    model = small_model("llama")
    runs = [
        generate(
            model, batch(side), 2, key=jax.random.key(seed), temperature=temperature, top_k=k,
            top_p=p, stop=stop, interventions=add("resid_post", seed * STEER, layer=seed,
            position=position),
        )
        for side, seed, temperature, k, p, stop, position in (
            ("left", 0, 0.1, 3, 0.5, 1, 2),
            ("right", 1, 0.7, 4, 1.0, 2, 3),
            ("left", 2, 2, 1, 1, 3, 0),
        )
    ]  # fmt: skip
    assert len(runs) == 3
    with pytest.raises(AssertionError, match="traced"):
        generate(model, batch("left")[:1], 2)


def test_under_jit_and_vmap_of_the_caller():
    model, tokens = small_model("neox"), jnp.asarray([PROMPTS[1]])

    def log_probs(tokens, layer):
        steer = add("resid_post", STEER, layer=layer)
        return generation.generate(model, tokens, 2, interventions=[steer]).log_probs

    mapped = jax.vmap(jax.jit(log_probs), (None, 0))(tokens, jnp.arange(3))
    for layer in range(3):
        np.testing.assert_allclose(mapped[layer], log_probs(tokens, layer), atol=1e-6)


def test_a_traced_position_out_of_reach_is_nan_in_its_own_prompt():
    @jax.jit
    def log_probs(position):
        steer = add("resid_post", STEER, position=position)
        tokens = batch("left")
        return generation.generate(small_model("llama"), tokens, 3, interventions=steer).log_probs

    out = log_probs(jnp.array([6, 5, 5]))  # prompts of 5, 3 and 4 tokens run 7, 5 and 6
    assert np.isnan(out).all(-1).tolist() == [False, True, False]
    assert np.isfinite(out[::2]).all()


def test_bfloat16_generates_and_answers_in_float32():
    model = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), small_model("llama"))
    out = generate(model, batch("left"), 3)
    assert out.log_probs.dtype == np.float32
    assert np.isfinite(out.log_probs).all()


# Errors


REFUSED = [
    ({"n_new": 0}, "n_new=0, expected a whole number"),
    ({"n_new": 2.0}, "n_new=2.0, expected a whole number"),
    ({"temperature": 1.0}, r"needs a key: pass key=jax.random.key"),
    ({"temperature": -1}, "temperature=-1, expected a finite number of at least 0"),
    ({"top_k": 3, "key": 1}, "pass temperature="),
    ({"top_k": 0, "key": 1, "temperature": 1}, "top_k=0, expected a whole number of at least 1"),
    ({"top_p": 1.5, "key": 1, "temperature": 1}, "top_p=1.5, expected .* more than 0"),
    ({"stop": 17}, "stop=17, expected token ids from 0 to 16"),
    ({"stop": 1.5}, "stop is float64"),
    ({"pad": -1}, "pad=-1, expected a whole number from 0 to 16"),
    ({"apply": "answer"}, "apply='answer', expected one of both, prompt, generated"),
    ({"tokens": [[1, 17]]}, "Token id 17 is outside the vocabulary"),
    ({"tokens": ragged([[1], []], "left", 2)}, "Prompt 1 is all padding"),
    ({"interventions": zero("z", layer=3)}, "layer 3 is out of range"),
    ({"interventions": zero("pos_embed")}, "no site 'pos_embed'"),
    ({"interventions": zero("z", position=9)}, "position 9 is out of range"),
    ({"interventions": zero("z", position=6)}, "position 6 at 'z' is not met in prompt 0 of 4"),
    ({"interventions": zero("z", position=4), "apply": "prompt"}, "expected 0 to 3"),
    ({"interventions": zero("z", position=3), "apply": "generated"}, "expected 4 to 5"),
    ({"interventions": zero("pattern", source=6)}, "source 6 at 'pattern' is not met"),
    ({"interventions": zero("z"), "apply": "generated", "n_new": 1}, "needs none"),
    ({"interventions": replace("z", np.ones((1, 4, 4, 6)))}, "holds 4 columns, and 6 are run"),
    ({"interventions": replace("pattern", np.ones((1, 4, 4, 4)), position=1)}, "apply='prompt'"),
    (
        {"interventions": replace("z", np.ones((2, 7, 4, 6))), "tokens": ragged([[1, 2, 3, 4], [1]],
         "right", 4)},
        "pad them on the left",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_done_is_refused_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        generate(small_model("llama"), **{"tokens": [[3, 1, 4, 1]], "n_new": 3, **options})


def test_models_that_cannot_generate_are_refused():
    with pytest.raises(ValueError, match="is bidirectional"):
        generate(small_model("bert"), [[3, 1]], 2)
    headless = small_model("llama").replace(config=CONFIGS["llama"].replace(head="none"))
    with pytest.raises(ValueError, match="no unembedding"):
        generate(headless, [[3, 1]], 2)
    with pytest.raises(ValueError, match="make 13; this gpt2 model has learned positions for 12"):
        generate(small_model("gpt2"), batch("left"), 7)
    assert generate(small_model("gpt2"), batch("left"), 6).new.shape == (3, 6)


def test_ends_that_the_model_lacks_do_not_stop_it():
    tokenizer = word_tokenizer(eos=True)  # whose end is id 11
    small = CONFIGS["gpt2"].replace(vocab_size=11)
    assert generation.ends_of(init(small, jax.random.key(0)), tokenizer) is None
    assert generation.ends_of(small_model("gpt2"), tokenizer) == (11,)
    assert generation.ends_of(small_model("gpt2"), None) is None


def test_no_ends_stop_nothing():
    model, tokens = small_model("gpt2"), as_tokens(EVEN)
    unstopped, empty = (generate(model, tokens, 2, stop=stop) for stop in (None, ()))
    np.testing.assert_array_equal(unstopped.new, empty.new)
    assert (empty.lengths == 2).all()
