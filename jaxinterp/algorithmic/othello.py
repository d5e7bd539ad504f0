"""Othello on a 6x6 board: random legal games, and the board behind every move of them.

The world of Li et al. 2023 (arXiv:2210.13382) and Nanda et al. 2023 (arXiv:2309.00941), smaller. A
token is the square played: ids 0 to 35, row by row from the upper left (those of the four centre
squares, taken from the start, never occur). The rules: black begins; a move must turn over at least
one disc; who has no move passes, which no token shows, and the other plays again; when neither has
one the game is over, be the board full or not. A board is told from the side of the player to move.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.algorithmic.prompts import as_prompts, at_least_one, pick, tokenizer_of
from jaxinterp.metrics import Metric, metric
from jaxinterp.model import Tokens
from jaxinterp.tokens import Tokenizer

SIZE = 6
SQUARES = SIZE * SIZE
CENTRE = (14, 15, 20, 21)  # white, black, black, white
MOVES = SQUARES - len(CENTRE)  # of a game, at most
NAMES = tuple(f"{column}{row}" for row in range(1, SIZE + 1) for column in "abcdef")
EMPTY, MINE, THEIRS = range(3)

_BIT = np.uint64(1) << np.arange(SQUARES, dtype=np.uint64)  # of each square
_FULL = _BIT.sum(dtype=np.uint64)


class Played(NamedTuple):
    """What stands after each of T moves of n games; after a game's last, that again.

    state: int8 [n T 36] of `EMPTY`, `MINE`, `THEIRS`, mine being those of the player who moves
    next (passes counted; after the end, of the one who did not move last). legal: bool [n T 36],
    that player's moves. black: bool [n T], whether it is black.
    """

    state: np.ndarray
    legal: np.ndarray
    black: np.ndarray


@functools.cache
def tokenizer() -> Tokenizer:
    """Of games like ``"c2 d3 b3"``."""
    return tokenizer_of("othello", NAMES)


def random_games(n: int, seed: Any = 0) -> np.ndarray:
    """Moves int32 [n 32] of n games, each drawn evenly from the legal ones; -1 after the end.

    seed: as `numpy.random.default_rng` takes it. Raises ``ValueError`` for n < 1.
    """
    at_least_one(n=n)
    rng = np.random.default_rng(seed)
    turn, moves = _begin(n), np.full((n, MOVES), -1, np.int32)
    for t in range(MOVES):
        legal = _squares(_legal(turn.mine, turn.theirs))
        moves[:, t] = np.where(legal.any(1), pick(rng, legal), -1)
        turn = _play(turn, moves[:, t])
    return moves


def replay(moves: Any) -> Played:
    """The boards of games [n T], each begun at the start and filled up with -1 after its end.

    Raises ``ValueError`` for what is not that, naming the first move that the rules forbid.
    """
    moves = np.asarray(moves)
    if moves.ndim != 2 or not moves.size or moves.dtype.kind not in "iu":
        raise ValueError(
            f"moves are {moves.dtype} {list(moves.shape)}, expected whole numbers [game, move]."
        )
    n, length = moves.shape
    turn = _begin(n)
    state, black = np.empty((n, length, SQUARES), np.int8), np.empty((n, length), bool)
    legal = np.empty((n, length, SQUARES), bool)
    now = _squares(_legal(turn.mine, turn.theirs))
    for t, square in enumerate(moves.T):
        _check(moves, t, now)
        turn = _play(turn, square)
        now = _squares(_legal(turn.mine, turn.theirs))
        state[:, t] = _squares(turn.mine) * MINE + _squares(turn.theirs) * THEIRS
        legal[:, t], black[:, t] = now, turn.black
    return Played(state, legal, black)


def legal_squares(state: Any) -> np.ndarray:
    """bool [... 36]: where the player to move may play on boards [... 36], reached or made up."""
    state = _boards(state)
    mine, theirs = (np.where(state == who, _BIT, 0).sum(-1, dtype=np.uint64) for who in (1, 2))
    return _squares(_legal(mine, theirs))


def turned_over(state: Any, square: Any) -> np.ndarray:
    """Boards [n 36] with the disc on one square [n] of each turned over.

    Raises ``ValueError`` where that square is empty.
    """
    state, rows = _boards(state).copy(), np.arange(len(state))
    held = state[rows, square]
    if (held == EMPTY).any():
        bad = int((held == EMPTY).argmax())
        name = NAMES[int(np.broadcast_to(square, rows.shape)[bad])]
        raise ValueError(f"Square {name} of board {bad} is empty: it has no disc to turn over.")
    state[rows, square] = MINE + THEIRS - held
    return state


@dataclasses.dataclass(frozen=True)
class Positions:
    """n games, each up to one of its moves, as prompts; the board there as in `Played`, [n ...]."""

    tokens: Tokens
    state: np.ndarray
    legal: np.ndarray
    black: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: Any) -> Positions:
        """Some of them, by slice, indices or mask."""
        return Positions(self.tokens[rows], self.state[rows], self.legal[rows], self.black[rows])


def random_positions(n: int, seed: Any = 0) -> Positions:
    """Of n random games, each up to a move drawn evenly from all but its last; prompts [n 31]."""
    rng = np.random.default_rng(seed)
    moves, rows = random_games(n, rng), np.arange(n)
    at = rng.integers(0, (moves >= 0).sum(1) - 1)
    played = replay(moves)
    cut = np.where(np.arange(MOVES) <= at[:, None], moves, -1)[:, :-1]
    return Positions(as_prompts(cut), *(part[rows, at] for part in played))


def telling_squares(positions: Positions) -> np.ndarray:
    """bool [n 36]: the discs that, turned over, would change what is legal, and leave some move."""
    telling = np.zeros(positions.state.shape, bool)
    for square in range(SQUARES):
        rows = np.flatnonzero(positions.state[:, square])
        after = legal_squares(turned_over(positions.state[rows], square))
        telling[rows, square] = (after != positions.legal[rows]).any(1) & after.any(1)
    return telling


def wrong_moves(legal: Any, scored: Any = None) -> Metric:
    """How many moves of each prompt are predicted and not legal, or legal and not predicted.

    Predicted are the k likeliest moves, k being the number of legal ones. legal: bool [n 36].
    scored: bool [n 36], the moves that count; by default all.
    """
    legal = np.asarray(legal, bool)
    scored = np.ones_like(legal) if scored is None else np.asarray(scored, bool)
    return metric(missed_moves, data=(legal, scored))


def legal_sets(legal: Any) -> Metric:
    """1 where the k likeliest moves are the k legal ones, else 0. legal: bool [n 36]."""
    return metric(all_legal, data=(np.asarray(legal, bool),))


def missed_moves(logits: jax.Array, legal: jax.Array, scored: jax.Array) -> jax.Array:
    """The function of `wrong_moves`: logits [B 1 36], legal and scored bool [B 36] to [B]."""
    z = logits[:, 0]
    above = (z[:, None, :] > z[:, :, None]).sum(-1)
    said = above < legal.sum(-1, keepdims=True)
    return ((said != legal) & scored).sum(-1)


def all_legal(logits: jax.Array, legal: jax.Array) -> jax.Array:
    """The function of `legal_sets`: logits [B 1 36], legal bool [B 36] to [B]."""
    return (missed_moves(logits, legal, jnp.ones_like(legal)) == 0).astype(logits.dtype)


def drawn(state: Any) -> str:
    """A board [36] as text: x mine, o theirs, a dot for empty."""
    rows = _boards(state).reshape(SIZE, SIZE)
    lines = [f"{i} " + " ".join(".xo"[disc] for disc in row) for i, row in enumerate(rows, 1)]
    return "\n".join(["  a b c d e f", *lines])


class _Turn(NamedTuple):
    """Where games stand: bitboards uint64 [n] of the player to move and of the other; who it is."""

    mine: np.ndarray
    theirs: np.ndarray
    black: np.ndarray


def _begin(n: int) -> _Turn:
    white, black = (_BIT[list(squares)].sum(dtype=np.uint64) for squares in ((14, 21), (15, 20)))
    return _Turn(np.full(n, black), np.full(n, white), np.ones(n, bool))


def _play(turn: _Turn, square: np.ndarray) -> _Turn:
    """After a move [n] of each game, and a pass if need be; -1 leaves a game as it is."""
    played = square >= 0
    move = np.where(played, _BIT[square.clip(0)], np.uint64(0))
    turned = _turned(turn.mine, turn.theirs, move)
    mine, theirs = turn.mine | move | turned, turn.theirs & ~turned
    stays = ~played
    stuck = np.flatnonzero(played & (_legal(theirs, mine) == 0))
    stays[stuck] = _legal(mine[stuck], theirs[stuck]) != 0
    ours, others = np.where(stays, mine, theirs), np.where(stays, theirs, mine)
    return _Turn(ours, others, turn.black == stays)


def _check(moves: np.ndarray, t: int, legal: np.ndarray) -> None:
    """Refuse moves number t that are not among the legal ones [n 36]."""
    square, rows = moves[:, t], np.arange(len(moves))
    over = moves[:, t - 1] < 0 if t else np.zeros(len(moves), bool)
    known = (square >= (-1 if t else 0)) & (square < SQUARES)
    may = ~over & legal[rows, square.clip(0, SQUARES - 1)]
    right = known & ((square < 0) | may)
    if right.all():
        return
    game = int((~right).argmax())
    said, left = int(square[game]), [NAMES[i] for i in np.flatnonzero(legal[game])]
    if not known[game]:
        raise ValueError(
            f"Move {t} of game {game} is {said}, expected a square from 0 to {SQUARES - 1}, or -1 "
            "once the game is over."
        )
    if over[game]:
        raise ValueError(f"Game {game} ends before move {t - 1} (-1) and goes on at move {t}.")
    raise ValueError(
        f"Move {t} of game {game} is {NAMES[said]}, which is not legal there: legal are "
        f"{', '.join(left) or 'none, the game is over'}."
    )


def _boards(state: Any) -> np.ndarray:
    state = np.asarray(state)
    if state.shape[-1:] != (SQUARES,) or not np.isin(state, (EMPTY, MINE, THEIRS)).all():
        raise ValueError(
            f"A board is {list(state.shape)}, expected [..., {SQUARES}] of 0 (empty), 1 (mine) "
            "and 2 (theirs)."
        )
    return state


def _squares(bits: np.ndarray) -> np.ndarray:
    """bool [... 36] of bitboards [...]."""
    return (bits[..., None] & _BIT) != 0


# Bitboards: a step in a direction shifts all squares at once; what would leave the board is cut.


class _Step(NamedTuple):
    """One of the eight directions: how far it shifts, and the squares from which it is possible."""

    shift: np.uint64
    back: bool
    possible: np.uint64

    def __call__(self, discs: np.ndarray) -> np.ndarray:
        held = discs & self.possible
        return held >> self.shift if self.back else held << self.shift


def _steps() -> tuple[_Step, ...]:
    out = []
    rows, columns = np.divmod(np.arange(SQUARES), SIZE)
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1)):
        inside = np.isin(rows + down, range(SIZE)) & np.isin(columns + right, range(SIZE))
        shift = SIZE * down + right
        out.append(_Step(np.uint64(abs(shift)), shift < 0, _BIT[inside].sum(dtype=np.uint64)))
    return tuple(out)


_STEPS = _steps()


def _run(step: _Step, begin: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Their discs that stand in an unbroken row from ``begin`` on."""
    run = step(begin) & theirs
    for _ in range(SIZE - 3):  # between two squares of a line stand at most SIZE - 2
        run |= step(run) & theirs
    return run


def _legal(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The squares at which the player to move would turn discs over."""
    empty = _FULL & ~(mine | theirs)
    legal = np.zeros_like(mine)
    for step in _STEPS:
        legal |= step(_run(step, mine, theirs)) & empty
    return legal


def _turned(mine: np.ndarray, theirs: np.ndarray, move: np.ndarray) -> np.ndarray:
    """The discs that a move (one bit each) turns over."""
    turned = np.zeros_like(mine)
    for step in _STEPS:
        run = _run(step, move, theirs)
        turned |= np.where(step(run) & mine, run, np.uint64(0))
    return turned
