"""Train the shipped language model of English text: three layers with MLPs, on WikiText-2.

    python scripts/train_text.py --out weights/wiki-3l

A byte-level BPE of 2,048 tokens is learned from the training part, then the model, on blocks that
begin anywhere in it, drawn from the seed and the step. Measured on the test part, beside what
counts of single tokens and of pairs give. A killed run goes on from --folder.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import tokenizers
import training_run
from tokenizers import decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import corpora
from jaxinterp.loading.shipped import ship

NAME = "wiki-3l"
VOCABULARY, LENGTH = 2048, 128
END = "<|endoftext|>"  # token 0, which begins every block
CONFIG = ji.Config(
    n_layers=3, d_model=160, n_heads=5, d_head=32, d_mlp=640, vocab_size=VOCABULARY, n_ctx=LENGTH,
    positions="learned", norm="layer", act="gelu_tanh", gated=False, bias_qkv=True, bias_o=True,
    bias_mlp=True,
)  # fmt: skip


def main() -> None:
    parser = training_run.parser(__doc__, NAME, steps=3000)
    parser.add_argument("--batch", type=int, default=32, help=f"blocks of {LENGTH} tokens a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    args = parser.parse_args()
    train, test = texts()
    tokenizer = learned(train)
    ids = encoded(tokenizer, train)
    trained, compute = training_run.run(
        args, training_run.started(CONFIG, args.seed, NAME, 0.1),
        functools.partial(batch, ids=ids, seed=args.seed, n=args.batch), loss,
        training_run.adamw(args.steps, args.rate, args.weight_decay),
    )  # fmt: skip
    card = ship(
        args.out, trained.model, tokenizer=tokenizer,
        description="A small language model of English: three layers with MLPs, learned positions "
        "and LayerNorm, byte-level BPE of 2,048 tokens. It writes the surface of encyclopedia text "
        "and knows nothing.",
        data=f"WikiText-2's training part ({len(ids):,} tokens; text CC BY-SA 3.0, Merity et al. "
        f"2016), {args.batch} blocks of {LENGTH} a step; measured on its test part.",
        recipe=training_run.recipe(args), seed=args.seed, steps=args.steps, compute=compute,
        metrics=measured(trained.model, ids, encoded(tokenizer, test), test),
    )  # fmt: skip
    print(card.markdown())


def texts() -> tuple[list[str], list[str]]:
    """The lines of WikiText-2's training and test parts."""
    folder = ji.fetch("wikitext-2")
    train, test = (
        list(corpora.read_lines(folder / f"{part}.raw.gz")) for part in ("train", "test")
    )
    return train, test


def learned(lines: list[str]) -> ji.Tokenizer:
    """A byte-level BPE of the lines, each of which ends with a newline."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator((ended(line) for line in lines), trainer)
    return ji.Tokenizer(backend, bos=0, eos=0, add_bos=True, name=NAME)


def ended(line: str) -> str:
    return line.rstrip("\n") + "\n"


def encoded(tokenizer: ji.Tokenizer, lines: list[str]) -> np.ndarray:
    """All tokens [N] of the lines, one after another."""
    parts = [
        tokenizer.encode(ended(line), add_bos=False)
        for line in tqdm(lines, "tokens", unit=" lines")
    ]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def blocks(ids: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Blocks [n 128] from places [n] of the tokens, the beginning before each."""
    body = ids[begin[:, None] + np.arange(LENGTH - 1)]
    return np.concatenate([np.zeros((len(begin), 1), np.int32), body], 1)


def batch(step: int, *, ids: np.ndarray, seed: int, n: int) -> np.ndarray:
    """The blocks of a step."""
    rng = np.random.default_rng((training_run.TRAINED, seed, step))
    return blocks(ids, rng.integers(0, len(ids) - LENGTH, n))


def loss(model: ji.Model, ids: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of the next token, in nats."""
    return training_run.next_token_losses(model, ids).mean(), {}


def measured(
    model: ji.Model, train: np.ndarray, test: np.ndarray, lines: list[str]
) -> dict[str, float]:
    """On the test part: nats per token, bits per byte; beside it, what counts give.

    unigrams: nats per token from the training part's counts of tokens; bigrams: of pairs, backed
    by those of tokens.
    """
    held = blocks(test, np.arange(0, len(test) - LENGTH, LENGTH - 1))
    found = np.concatenate([
        np.asarray(training_run.next_token_losses(model, part), np.float64)
        for part in training_run.in_parts(held, 64)
    ])  # fmt: skip
    size = sum(len(ended(line).encode()) for line in lines) / len(test)
    single = np.bincount(train, minlength=VOCABULARY) + 1.0
    single /= single.sum()
    pairs = np.bincount(train[:-1].astype(np.int64) * VOCABULARY + train[1:],
                        minlength=VOCABULARY**2).reshape(VOCABULARY, VOCABULARY)  # fmt: skip
    given = (pairs + 50 * single) / (pairs.sum(1, keepdims=True) + 50)
    before, after = held[:, 1:-1], held[:, 2:]
    return {
        "loss": float(found.mean()),
        "bits_per_byte": float(found.mean() / np.log(2) / size),
        "unigrams": float(-np.log(single[held[:, 1:]]).mean()),
        "bigrams": float(-np.log(given[before, after]).mean()),
    }


if __name__ == "__main__":
    main()
