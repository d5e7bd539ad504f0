"""How many operations a sweep takes: hook loops, and the fewest that exact values allow.

Counted are the multiplications and additions of matrix products (a multiply-add is two);
norms, softmax and activation functions are not. Blocks are black boxes, weights are read as
they are, and sliding windows earn nothing. All numbers are for one prompt of a causal model
whose metric is read at the last position, and none includes the clean and corrupted runs
that a sweep starts from (two `full_forward`).

T ``length`` positions; p0 ``first_difference``, the first at which the clean and corrupted
tokens differ: nothing before it can change. n = T - p0.
"""

from __future__ import annotations

import dataclasses

from jaxinterp.model import SITES, Config


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """What one position costs in one block, by part.

    pair: one query with one key, all heads: the score and the weighted value.
    """

    q: int
    kv: int
    o: int
    mlp: int
    pair: int

    @property
    def position(self) -> int:
        """Everything but the pairs."""
        return self.q + self.kv + self.o + self.mlp


def block_cost(config: Config) -> BlockCost:
    """The parts of one block's cost, from its shapes."""
    heads = 2 * config.d_model * config.n_heads * config.d_head
    return BlockCost(
        q=heads,
        kv=4 * config.d_model * config.n_kv_heads * config.d_head,
        o=heads,
        mlp=(6 if config.gated else 4) * config.d_model * config.d_mlp,
        pair=4 * config.n_heads * config.d_head,
    )


def full_forward(
    config: Config, length: int, *, reads: int | None = None, columns: int | None = None
) -> int:
    """A forward pass: every block at every position, and the unembedding.

    reads: how many positions are unembedded (default: all, as hook loops do). columns: into
    how many logits (default: the vocabulary).
    """
    cost = block_cost(config)
    pairs = length * (length + 1) // 2 if config.causal else length**2
    blocks = config.n_layers * (length * cost.position + pairs * cost.pair)
    reads = length if reads is None else reads
    return blocks + reads * _readout(config, config.n_logits if columns is None else columns)


def hook_loop(
    config: Config,
    length: int,
    cells: int,
    *,
    reads: int | None = None,
    columns: int | None = None,
) -> int:
    """One full forward per cell."""
    return cells * full_forward(config, length, reads=reads, columns=columns)


def cell_bound(
    config: Config, site: str, length: int, layer: int, position: int,
    *, whole: bool = False, part: float = 1.0, columns: int = 2,
) -> int:  # fmt: skip
    """The fewest operations for one experiment: ``site`` changed at a layer, from a position.

    whole: at every position from it on; else there alone. part: the share of the site's
    heads (or neurons) that changes. columns: how many logits the metric reads (a logit
    difference: 2). A site that occurs once counts as the stream before layer 0 (embeddings)
    or after the last (final norm).
    """
    cost, above = block_cost(config), _Above(config, length, position)
    n, last = length - position, config.n_layers - 1
    readout = _readout(config, columns)
    if not SITES[site].layered:
        return readout + (0 if site.startswith("ln_final") else above(0, whole))
    ends = position == length - 1  # the one read position is the one that changes
    rows = n if whole else 1
    later = n
    if layer == last:  # one query, one output, one MLP row are needed
        rows = int(whole or ends)
        later = 1
    mlp_after = 0 if config.parallel else cost.mlp
    up = above(layer + 1, whole)
    if site in _MIDDLE:
        return readout + rows * cost.mlp + up
    if site in _NEURONS:
        matrices = 3 if config.gated else 2
        return readout + int(rows * cost.mlp * part) // matrices + up
    if site in _ENDS:
        return readout + up
    if site in _OUTPUTS:  # of heads: only a changed head writes anew
        own = cost.o if site == "z" else 0
        return readout + rows * (int(own * part) + mlp_after) + up
    if site in _ROWS:  # a query's own row of the pattern
        pairs = sum(position + i + 1 for i in range(n)) if whole else position + 1
        pairs = length * int(whole or ends) if layer == last else pairs
        share = cost.pair if "q" in site else cost.pair // 2
        own = rows * (cost.o + (cost.q if site == "q_input" else 0)) + pairs * share
        return readout + int(own * part) + rows * mlp_after + up
    if site in _KEYS:  # every later query sees them
        pairs = length if layer == last else _pairs(length, position)
        own = later * cost.o + pairs * cost.pair
        if "input" in site:
            own += (n if whole else 1) * cost.kv // 2
        return readout + int(own * part) + later * mlp_after + above(layer + 1, True)
    return readout + above(layer, whole)


_MIDDLE = ("ln1_post_scale", "ln1_post_normalized", "attn_out", "resid_mid", "mlp_in", "ln2_scale",
           "ln2_normalized")  # fmt: skip
_NEURONS = ("mlp_pre", "mlp_pre_linear", "mlp_post")
_ENDS = ("ln2_post_scale", "ln2_post_normalized", "mlp_out", "resid_post")
_OUTPUTS = ("z", "result")
_ROWS = ("q_input", "q", "rot_q", "attn_scores", "pattern")
_KEYS = ("k_input", "v_input", "k", "v", "rot_k")


class _Above:
    """What the blocks from a layer on cost after the stream before them changed."""

    def __init__(self, config: Config, length: int, position: int):
        self.config, self.length, self.position = config, length, position

    def __call__(self, layer: int, whole: bool) -> int:
        c, cost, n = self.config, block_cost(self.config), self.length - self.position
        if layer == c.n_layers:
            return 0
        total = _suffix(c, self.length, self.position, layer)
        if whole:
            return total
        # In the first block only one position brings new queries, keys and values.
        unchanged = n - 1
        reads = unchanged if layer < c.n_layers - 1 else min(unchanged, 1)
        one_read = cost.q + (cost.mlp if c.parallel else 0)
        return total - unchanged * cost.kv - reads * one_read


def residual_bound(
    config: Config, length: int, first_difference: int = 0, *, columns: int = 2
) -> int:
    """The fewest operations for the residual stream patched at every (layer, position)."""
    _check(config, length, first_difference)
    return sum(
        cell_bound(config, "resid_pre", length, layer, position, columns=columns)
        for layer in range(config.n_layers)
        for position in range(first_difference, length)
    )


def head_bound(config: Config, length: int, first_difference: int = 0, *, columns: int = 2) -> int:
    """The fewest operations for each head's output patched at all positions, (layer, head)."""
    _check(config, length, first_difference)
    if first_difference == length:
        return 0
    return config.n_heads * sum(
        cell_bound(
            config, "z", length, layer, first_difference,
            whole=True, part=1 / config.n_heads, columns=columns,
        )
        for layer in range(config.n_layers)
    )  # fmt: skip


def n_edges(config: Config) -> int:
    """The edges of the graph of embedding, heads (q, k, v apart), MLPs and logits."""
    receivers = config.n_heads + 2 * config.n_kv_heads
    into_heads = sum(receivers * _senders(config, i) for i in range(config.n_layers))
    into_mlps = sum(_mlp_edges(config, i) for i in range(config.n_layers))
    return into_heads + into_mlps + _senders(config, config.n_layers)


def edge_bound(config: Config, length: int, first_difference: int = 0, *, columns: int = 2) -> int:
    """The fewest operations for each edge patched by itself at all positions.

    An edge into a head's q, k or v projects n new rows, attends with that one head (under
    grouped heads a key or value serves all of its queries), writes its output, and runs all that
    reads it; an edge into an MLP starts there. In the last layer one query, one output and one MLP
    row are needed.
    """
    _check(config, length, first_difference)
    if first_difference == length:
        return 0
    cost, heads, last = block_cost(config), config.n_heads, config.n_layers - 1
    one_head = cost.q // heads  # a head's projection of one row: q, k, v or output
    mlp = 0 if config.parallel else cost.mlp
    groups, size = config.n_kv_heads, heads // config.n_kv_heads
    total = 0
    for layer in range(config.n_layers):
        rows = length - first_difference
        reads = rows if layer < last else 1
        pairs = _pairs(length, length - reads) * cost.pair // heads
        above = _suffix(config, length, first_difference, layer + 1)
        query = reads * (2 * one_head + mlp) + pairs + above
        other = rows * one_head + reads * (size * one_head + mlp) + size * pairs + above
        total += _senders(config, layer) * (heads * query + 2 * groups * other)
        total += _mlp_edges(config, layer) * (reads * cost.mlp + above)
    return total + n_edges(config) * _readout(config, columns)


def _suffix(config: Config, length: int, start: int, layer: int) -> int:
    """Blocks ``layer`` to L-1 over positions from ``start``; the last one reads one query."""
    blocks = config.n_layers - layer
    if not blocks:
        return 0
    cost, n = block_cost(config), length - start
    whole = n * cost.position + _pairs(length, start) * cost.pair
    light = n * cost.kv + (cost.position - cost.kv) + length * cost.pair
    return (blocks - 1) * whole + light


def _pairs(length: int, start: int) -> int:
    """Query-key pairs with queries from ``start`` on."""
    return (length * (length + 1) - start * (start + 1)) // 2


def _readout(config: Config, columns: int) -> int:
    return 2 * config.d_model * columns


def _senders(config: Config, layer: int) -> int:
    """What writes to the stream before ``layer``: the embedding, and each head and MLP."""
    return 1 + (config.n_heads + (not config.attention_only)) * layer


def _mlp_edges(config: Config, layer: int) -> int:
    """The edges into one layer's MLP."""
    if config.attention_only:
        return 0
    return _senders(config, layer) + (0 if config.parallel else config.n_heads)


def _check(config: Config, length: int, first_difference: int) -> None:
    if not config.causal:
        raise ValueError("The bounds are for causal models: in others every position changes.")
    if not 0 <= first_difference <= length:
        raise ValueError(
            f"first_difference={first_difference} lies outside a prompt of {length} positions."
        )
