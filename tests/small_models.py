"""Small random models that together make every choice a `Config` has."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

from jaxinterp.metrics import logit_diff
from jaxinterp.model import SITES, Config, Model, Rotary, Tokens, as_tokens, forward, init
from jaxinterp.model.sites import absent, axis_size

_BASE = Config(
    n_layers=3, d_model=8, n_heads=4, d_head=6, d_mlp=10, vocab_size=17, n_ctx=12, norm_eps=1e-3,
)  # fmt: skip
_GPT2 = _BASE.replace(
    family="gpt2", positions="learned", rotary=(), norm="layer", act="gelu_tanh", gated=False,
    bias_qkv=True, bias_o=True, bias_mlp=True, head="tied",
)  # fmt: skip
_LLAMA = _BASE.replace(family="llama", n_kv_heads=2)
_GEMMA2 = _LLAMA.replace(
    family="gemma2", act="gelu_tanh", norm_output=True, attn_softcap=2.0, logit_softcap=3.0,
    attn_scale=0.3, windows=(3, 0, 3), embed_scale=8**0.5, head="tied",
)  # fmt: skip
_BERT = _GPT2.replace(
    family="bert", act="gelu", causal=False, norm_input=False, norm_stream=True, norm_embed=True,
    norm_final=False, n_token_types=2, head_transform=True, bias_head=True,
)  # fmt: skip

CONFIGS = {
    "gpt2": _GPT2,
    "neox": _GPT2.replace(
        family="gpt_neox", positions="rotary", rotary=(Rotary(4),), parallel=True, act="gelu",
        head="untied",
    ),
    "gptj": _GPT2.replace(
        family="gptj", positions="rotary", rotary=(Rotary(4, interleaved=True),), parallel=True,
        bias_qkv=False, bias_o=False, head="untied", bias_head=True,
    ),
    "llama": _LLAMA.replace(rotary=(Rotary(6, 100.0, scaling=("llama3", 4.0, 1.0, 4.0, 32)),)),
    "qwen3": _LLAMA.replace(
        family="qwen3", n_kv_heads=1, qk_norm="head", bias_qkv=True,
        rotary=(Rotary(6, scaling=("linear", 2.0)),),
    ),
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2.replace(
        family="gemma3", attn_softcap=0.0, logit_softcap=0.0, qk_norm="head", windows=(2, 2, 0),
        rotary=(Rotary(6, 50.0), Rotary(6, 1000.0, scaling=("linear", 4.0))),
        rotary_kind=(0, 0, 1),
    ),
    "olmo2": _BASE.replace(
        family="olmo2", qk_norm="joint", norm_input=False, norm_output=True, bias_mlp=True,
        rotary=(Rotary(6, 100.0, scaling=("yarn", 4.0, 4.0, 1.0, 32, None, True)),),
    ),
    "bert": _BERT,
    "encoder": _BERT.replace(
        act="relu", head="none", head_transform=False, bias_head=False, n_token_types=0,
        windows=(2, 0, 0),
    ),
    "attention_only": _BASE.replace(
        family="attention_only", d_mlp=0, norm="none", positions="none", rotary=(),
    ),
    "attention_only_stream": _BERT.replace(d_mlp=0, causal=True, n_token_types=0),
}  # fmt: skip

PROMPTS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
OTHER = np.array([[3, 1, 7, 1, 5, 9, 2], [6, 5, 3, 11, 8, 10, 7]])
CORRECT, WRONG = [4, 9], [8, 2]
DIFF = logit_diff(CORRECT, WRONG)


CORE = ["llama", "neox", "gemma2"]  # grouped heads, parallel blocks, sandwich norms


def with_long(*names: str, core: Iterable[str] = CORE) -> list[Any]:
    """For ``parametrize``: the core families, and those that only the long run covers."""
    return [*core, *(only_long(name) for name in names if name not in core)]


def only_long(*values: Any) -> Any:
    """For ``parametrize``: a case that only the long run covers."""
    return pytest.param(*values, marks=pytest.mark.long)


def diff(runs) -> np.ndarray:
    """`DIFF` of the oracle's runs, one per prompt."""
    return np.array(
        [r[0][-1, c] - r[0][-1, w] for r, c, w in zip(runs, CORRECT, WRONG, strict=True)]
    )


def sites_of(config: Config) -> list[str]:
    """The sites a model of that architecture has."""
    return [site for site in SITES if site not in absent(config)]


def sizes_of(config: Config, site: str, length: int) -> dict[str, int]:
    """The lengths of a site's axes after batch, by name."""
    return {a: axis_size(config, SITES[site], a) or length for a in SITES[site].axes}


@functools.cache
def donor(name: str) -> dict[str, np.ndarray]:
    """What the model does on `OTHER`, at every site."""
    out = forward(small_model(name), with_types(name, OTHER), record=sites_of(CONFIGS[name]))
    return {site: np.asarray(value) for site, value in out.activations.items()}


def with_types(name: str, ids: np.ndarray) -> Tokens:
    """Tokens with two kinds of token types where the model knows them."""
    tokens = as_tokens(ids)
    return tokens.replace(types=np.asarray(ids) % 2) if CONFIGS[name].n_token_types else tokens


@functools.cache
def small_model(name: str) -> Model:
    """The random model of that name; gains, shifts and biases are not trivial."""
    return perturbed(init(CONFIGS[name], jax.random.key(0)))


def in_float64(name: str) -> Model:
    """The same in float64 (under ``jax.enable_x64``), where an oracle's tolerance can be tight.

    The values of a model without norms are so large that float32's rounding hides mistakes.
    """
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_model(name))


def perturbed(model: Model, seed: int = 1) -> Model:
    """The model with noise on every parameter."""
    rng = np.random.default_rng(seed)

    def noisy(x):
        return (np.asarray(x) + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree.map(noisy, model)


def ragged(prompts: list[list[int]], side: str, length: int) -> Tokens:
    """Prompts of any lengths as one batch, padded on one side; the padding holds real ids."""
    ids = np.full((len(prompts), length), 2)
    positions = np.full((len(prompts), length), -1)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        at = slice(0, n) if side == "right" else slice(length - n, length)
        ids[row, at], positions[row, at] = prompt, np.arange(n)
    return Tokens(ids, positions)
