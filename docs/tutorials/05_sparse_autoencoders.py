# %% [markdown]
# # Sparse autoencoders
#
# A sparse dictionary writes an activation as a few of many features. Train a small one, measure it
# beside what is trivial, look at a feature, and intervene on it as on a head.

# %%
import itertools
import tempfile

import numpy as np

import jaxinterp as ji
from jaxinterp import corpora, sae

model, tokenizer = ji.load("smollm2-135m-instruct")
layer = 12
config = sae.DictionaryConfig(
    model.config.d_model, 1024, activation="batch_topk", model=model.name, site="resid_post",
    layers=(layer,),
)  # fmt: skip

# %% [markdown]
# Harvest activations of real text into a store (resumable, with checksums). A real run takes
# millions of tokens; this page is two minutes' worth on two cores.

# %%
rows = corpora.read_lines(ji.fetch("wikitext-2") / "valid.raw.gz")
blocks = list(itertools.islice(corpora.packed(rows, tokenizer, 64, 16), 14))
store = sae.harvest_to(tempfile.mkdtemp() + "/activations", model, config, blocks[:12])
print(len(store), "tokens")

# %% [markdown]
# Three sparsities as one program, on one stream of activations. `batch_topk` keeps the k largest
# features per token, on average over a batch; L0 is how many are active. `longest` leaves out the
# few tokens whose activation is many times as long as usual.

# %%
front = sae.train(
    config, store.batches(512, seed=0, longest=4.0), sae.TrainingConfig(steps=100),
    sae.Hyperparameters(k=[8, 16, 32], learning_rate=2e-3),
)  # fmt: skip
held = np.concatenate([sae.values_at(model, t, config, first=False)[0] for t in blocks[12:]])
held = held[np.linalg.norm(held, axis=1) <= store.norm_limit(4.0)]
for d in front.dictionaries:
    own = sae.reconstruction(d, [held])
    print(f"L0 {float(own.l0):5.1f}   explained variance {float(own.explained):.3f}")

# %% [markdown]
# How much of the model's loss survives with the reconstruction in the stream's place? Recovered is
# the share of what is lost without the stream (zero, or its mean, in its place).

# %%
d = front.dictionaries[-1]
loss = sae.loss_recovered(model, d, blocks[12:], held.mean(0))
print({name: round(float(value), 3) for name, value in loss.data_vars.items()})

# %% [markdown]
# One feature, active on some 2% of tokens: where in text is it most? With so little training it may
# mean little. A first example far above the others may be one of those long tokens, which training
# left out and a corpus has.

# %%
density = sae.reconstruction(d, [held]).density.values
feature = int(np.argsort(abs(density - 0.02))[0])
top = sae.top_examples(
    model, d, blocks[12:], features=[feature], k=4, window=(6, 2), tokenizer=tokenizer
)
for rank in range(4):
    one = top.isel(feature=0, rank=rank)
    print(f"{float(one.value):6.1f}  {one.text.item()!r}")

# %% [markdown]
# A feature is a site like any other: scale it in a sweep, the dictionary's error kept, so that
# factor 1 is the model as it is.

# %%
task = ji.tasks.ioi(tokenizer, n=4, seed=0)
base = ji.evaluate(task.metric, model, task.clean)
same = ji.evaluate(task.metric, model, task.clean, sae.scale_features(d, feature, 1.0))
np.testing.assert_allclose(same, base, atol=1e-3)
some = np.array([feature, *range(3)])
off = ji.sweep(model, task.clean, sae.scale_features(d, some), task.metric)
for number, value in zip(some, np.asarray(off - base).mean(1), strict=True):
    print(f"feature {number:4} off: the metric changes by {value:+.3f}")
