"""No edit opens what a query may not see: the future, beyond a window, padding, another prompt.

Random architectures under random edits inside attention. Inputs that a position must not see
are exchanged, and its logits have to stay the same to the last bit.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from oracle import assert_near, batch
from small_models import DIFF, PROMPTS, perturbed, ragged, small_model

from jaxinterp.generation import generate
from jaxinterp.interventions import add, apply, replace, scale
from jaxinterp.metrics import logit_diff
from jaxinterp.model import Config, Model, Rotary, Tokens, as_tokens, forward, init
from jaxinterp.sweep import sweep

N_PROMPTS, LENGTH, VOCABULARY = 2, 6, 13


class Sharpen(struct.PyTreeNode):
    """A user's own edit of scores or pattern: every row as a function of itself."""

    factor: Any
    sites: Any = struct.field(pytree_node=False, default=("attn_scores",))

    def __call__(self, value, at):
        return (value - value.max(-1, keepdims=True)) * self.factor + value[..., ::-1]


def random_config(rng: np.random.Generator) -> Config:
    n_layers, n_kv_heads = int(rng.integers(1, 4)), int(rng.choice([1, 2]))
    rotary = bool(rng.integers(2))
    parallel = bool(rng.integers(2))
    return Config(
        n_layers=n_layers, d_model=8, n_heads=n_kv_heads * int(rng.integers(1, 3)),
        n_kv_heads=n_kv_heads, d_head=4, d_mlp=int(rng.choice([0, 6])), vocab_size=VOCABULARY,
        n_ctx=LENGTH + 4, causal=bool(rng.random() < 0.75),
        windows=tuple(rng.integers(0, 4, n_layers).tolist()) if rng.random() < 0.5 else (),
        attn_softcap=float(rng.choice([0.0, 2.0])), qk_norm=str(rng.choice(["none", "head"])),
        positions="rotary" if rotary else "learned", rotary=(Rotary(4),) if rotary else (),
        norm=str(rng.choice(["layer", "rms"])), parallel=parallel,
        norm_output=bool(rng.integers(2)) and not parallel, bias_qkv=bool(rng.integers(2)),
        gated=bool(rng.integers(2)), act=str(rng.choice(["silu", "gelu"])),
    )  # fmt: skip


def random_tokens(rng: np.random.Generator) -> Tokens:
    side = rng.choice(["none", "left", "right"])
    lengths = rng.integers(3, LENGTH + 1, N_PROMPTS) if side != "none" else [LENGTH] * N_PROMPTS
    prompts = [rng.integers(0, VOCABULARY, n).tolist() for n in lengths]
    return ragged(prompts, str(side), LENGTH)


def random_edit(rng: np.random.Generator, config: Config, shape: tuple[int, int]) -> Any:
    """An edit of scores, pattern, keys or values, of everything or at random indices."""
    n_prompts, length = shape
    whole = (n_prompts, config.n_heads, length, length)
    site = str(rng.choice(["attn_scores", "attn_scores", "pattern", "pattern", "v", "rot_k"]))
    if site == "rot_k" and config.positions != "rotary":
        site = "k"
    where: dict[str, Any] = {}
    if rng.integers(2):
        where["layer"] = int(rng.integers(config.n_layers))
    if site in ("v", "k", "rot_k"):
        value = rng.choice([np.nan, np.inf, 1e30, 0.0]).astype(np.float32)
        return replace(site, value, position=length // 2, **where)
    if rng.integers(2):
        where["head"] = int(rng.integers(config.n_heads))
    if rng.integers(2):
        where["source"] = int(rng.integers(3))
    if rng.integers(2):
        where["position"] = int(rng.integers(3))
    matrix = rng.standard_normal(whole).astype(np.float32)
    low = float(jnp.finfo(jnp.float32).min)
    edits = [
        lambda: replace(site, -np.inf if site == "attn_scores" else 0.0, **where),
        lambda: replace(site, low if site == "attn_scores" else 1.0, **where),
        lambda: replace(site, float(rng.standard_normal()), **where),
        lambda: replace(site, matrix, **where),
        lambda: add(site, matrix, **where),
        lambda: scale(site, float(rng.choice([-3.0, 0.0, 0.5, 100.0])), **where),
        lambda: apply(site, Sharpen(np.float32(rng.standard_normal())), **where),
        lambda: Sharpen(np.float32(0.7), (site,)),
    ]
    return edits[rng.integers(len(edits))]()


def reach(config: Config) -> int:
    """How far information travels through all windows; `LENGTH` where a layer has none."""
    windows = config.windows or (0,)
    return LENGTH if 0 in windows else sum(window - 1 for window in windows)


def allowed(config: Config, tokens: Tokens) -> np.ndarray:
    """bool [B P P]: whether a position (first) may depend on the token at another (second)."""
    q, s = tokens.positions[:, :, None], tokens.positions[:, None]
    near = abs(q - s) <= reach(config)
    return (s >= 0) & (q >= 0) & near & ((s <= q) | (not config.causal))


def leaks(run: Any, config: Config, tokens: Tokens) -> list[str]:
    """The columns whose change reaches a position that must not see it."""
    before, may = np.asarray(run(tokens)), allowed(config, tokens)
    found = []
    for prompt in range(len(tokens)):
        for column in range(tokens.shape[1]):
            ids = np.array(tokens.ids)
            ids[prompt, column] = (ids[prompt, column] + 1) % VOCABULARY
            after = np.asarray(run(tokens.replace(ids=ids)))
            same = ((before == after) | (np.isnan(before) & np.isnan(after))).all(-1)
            real = np.asarray(tokens.mask) & ~(
                may[:, :, column] & (np.arange(len(tokens)) == prompt)[:, None]
            )
            if not same[real].all():
                found.append(f"prompt {prompt}, column {column}")
    return found


@functools.cache
def setting(seed: int) -> tuple[Model, Tokens, Any]:
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    model = perturbed(init(config, jax.random.key(seed)), seed)
    tokens = random_tokens(rng)
    length = int(np.asarray(tokens.lengths).min())
    edits = tuple(random_edit(rng, config, tokens.shape) for _ in range(rng.integers(1, 3)))
    assert length >= 3
    return model, tokens, edits


def cases(default: int, whole: int) -> list[Any]:
    return [pytest.param(s, marks=[pytest.mark.long] if s >= default else []) for s in range(whole)]


@pytest.fixture(autouse=True)
def forget_programs_on_the_way(request):
    yield
    params = getattr(request.node, "callspec", None)
    if params is not None and params.params.get("seed", 1) % 20 == 0:
        jax.clear_caches()  # a process may hold only so many programs


@pytest.mark.parametrize("seed", cases(16, 320))
def test_forward(seed):
    model, tokens, edits = setting(seed)
    assert leaks(lambda t: forward(model, t, edits).logits, model.config, tokens) == []


@pytest.mark.parametrize("seed", cases(4, 30))
def test_under_the_users_own_transformations(seed):
    model, tokens, edits = setting(seed)

    @jax.jit
    def run(tokens):
        def one(row):
            alone = jax.tree.map(lambda leaf: leaf[None], row)
            return forward(model, alone, mine).logits[0]

        mine = [e for e in edits if np.ndim(getattr(e, "value", 0)) < 4]
        return jax.vmap(one)(tokens)

    assert leaks(run, model.config, tokens) == []


@pytest.mark.parametrize("seed", cases(4, 30))
def test_no_slope_leads_to_what_is_not_seen(seed):
    model, tokens, edits = setting(seed)
    edits = tuple(e for e in edits if e.sites[0] in ("attn_scores", "pattern"))
    query = np.asarray(tokens.columns(np.full(len(tokens), 2)))

    def logit(values):
        return forward(model, tokens.replace(values=values), edits).logits[
            np.arange(len(tokens)), query
        ].sum()  # fmt: skip

    slopes = jax.grad(logit)(jax.nn.one_hot(tokens.ids, VOCABULARY))
    may = allowed(model.config, tokens)[np.arange(len(tokens)), query]
    assert not np.asarray(slopes)[~may].any()


@pytest.mark.parametrize("seed", cases(4, 30))
def test_sweeps(seed):
    model, tokens, _ = setting(seed)
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, model.config.n_layers, 5)
    grid = [
        replace("attn_scores", np.full(5, -np.inf), layer=layers, source=np.arange(5) % 3),
        scale("pattern", rng.standard_normal(5).astype(np.float32), layer=layers),
        add("attn_scores", rng.standard_normal(5).astype(np.float32), layer=layers),
    ][seed % 3]  # fmt: skip
    for position in range(3):  # read at an early position: later tokens must not reach it
        metric = logit_diff([1, 2], [3, 4], position=np.full(2, position))

        def run(tokens, metric=metric):
            effects = np.asarray(sweep(model, tokens, grid, metric)).T  # B E
            return np.broadcast_to(effects[:, None], (*tokens.shape, effects.shape[1]))

        before, may = run(tokens), allowed(model.config, tokens)
        at = np.asarray(tokens.columns(np.full(len(tokens), position)))
        for prompt, column in np.ndindex(*tokens.shape):
            if may[prompt, at[prompt], column]:
                continue
            ids = np.array(tokens.ids)
            ids[prompt, column] = (ids[prompt, column] + 1) % VOCABULARY
            np.testing.assert_array_equal(run(tokens.replace(ids=ids)), before)


KNOCKED = {
    "minus infinity": lambda: replace("attn_scores", -np.inf, layer=1, source=0),
    "the least number": lambda: replace(
        "attn_scores", float(np.finfo(np.float32).min), layer=1, source=0
    ),
    "no share": lambda: scale("pattern", 0.0, layer=1, source=0),
}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
@pytest.mark.parametrize("how", KNOCKED)
def test_a_query_without_sources_reads_zero(name, how):
    model = small_model(name)
    out = forward(model, PROMPTS, KNOCKED[how](), record=("z", "pattern"))

    def edit(site, layer, value):
        if layer == 1 and site == "pattern" and how == "no share":
            value[..., 0] = 0
        if layer == 1 and site == "attn_scores" and how != "no share":
            value[..., 0] = -np.inf
        return value

    for b, (logits, sites) in enumerate(batch(model, as_tokens(PROMPTS), lambda b: edit)):
        assert_near(out.logits[b], logits, 1e-4)
        assert_near(out.activations["pattern"][:, b], sites["pattern"], 1e-5)
        assert_near(out.activations["z"][:, b], sites["z"], 1e-4)
    if model.config.causal:  # the first token has no other source
        assert not np.asarray(out.activations["z"])[1, :, 0].any()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_under_a_knocked_out_source(name, side):
    model, tokens = small_model(name), ragged([[3, 1, 4, 1], [5, 9]], side, 5)
    edit = replace("attn_scores", -np.inf, layer=1, source=0)
    out = generate(model, tokens, 4, interventions=edit)
    logits = np.asarray(forward(model, out.tokens, edit).logits, np.float64)[:, 4:-1]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(out.new, logits.argmax(-1))
    np.testing.assert_allclose(out.log_probs, expected.max(-1), atol=1e-5)


def test_what_is_recorded_is_what_was_attended_to():
    model = small_model("llama")
    edits = (add("attn_scores", 5.0), add("pattern", 1.0))
    found = forward(model, PROMPTS, edits, record=("attn_scores", "pattern")).activations
    later = np.triu(np.ones((7, 7), bool), 1)
    assert (np.asarray(found["attn_scores"])[..., later] == np.finfo(np.float32).min).all()
    assert not np.asarray(found["pattern"])[..., later].any()
    effects = sweep(model, PROMPTS, add("pattern", np.ones(1, np.float32)), DIFF)
    assert np.isfinite(effects).all()
