# %% [markdown]
# # Steering, with its side effects
#
# Adding a direction to the stream moves behaviour. So do random directions of the same length, and
# unrelated text suffers too: both are measured beside it.

# %%
import numpy as np

import jaxinterp as ji
from jaxinterp import corpora, directions, report, steering

model, tokenizer = ji.load("smollm2-135m-instruct")

# %% [markdown]
# A direction from contrast pairs, read at the last token of each.

# %%
things = ("film", "book", "meal", "song", "hotel", "game", "play", "trip")
good, bad = (
    [f"I {word} this {thing}, it was {how}." for thing in things]
    for word, how in (("loved", "wonderful"), ("hated", "terrible"))
)
layer = 12
pair = [ji.collect(model, tokenizer(texts))[layer + 1] for texts in (good, bad)]
direction = directions.from_pairs(*pair)
print(direction)

# %% [markdown]
# The behaviour: does the model go on with a good or a bad word? On other texts than those the
# direction came from.

# %%
texts = [f"The {thing} was" for thing in ("museum", "concert", "coffee", "lecture", "garden")]
words = [
    [tokenizer.single_token(f" {word}") for word in side]
    for side in (("great", "good", "nice"), ("bad", "awful", "poor"))
]
prompts = tokenizer(texts)
metric = ji.logit_diff(*(np.array([side] * len(texts)) for side in words))
steered = ji.steer(
    model, prompts, metric, {"sentiment": direction}, layers=[layer],
    coefficients=[-0.2, -0.1, 0.1, 0.2], placebos=3, seed=0,
)  # fmt: skip
effect = (steered - steered.clean).mean("prompt").isel(layer=0).to_pandas().round(2)
print(effect)

# %% [markdown]
# Coefficients are in units of the stream's mean norm at the layer. The rows called random are the
# placebos. And unrelated text? KL of the next token, in nats:

# %%
rows = corpora.read_lines(ji.fetch("wikitext-2") / "valid.raw.gz")
block = next(corpora.packed(rows, tokenizer, 32, 4))
apart = steering.side_effects(
    model, block, {"sentiment": direction}, layers=[layer], coefficients=[-0.2, -0.1, 0.1, 0.2],
    placebos=1, seed=0,
)  # fmt: skip
print(apart.mean("prompt").isel(layer=0).to_pandas().round(3))
report.steering_curves(steered, title="Steering")

# %% [markdown]
# What it reads like, with the loss of the new words under the model as it is:

# %%
made = steering.continuations(
    model, prompts[:2], direction, layer, [-0.2, 0.0, 0.2], 10, tokenizer=tokenizer
)
for prompt in made.prompt.values:
    for c in made.coefficient.values:
        text = made.text.sel(coefficient=c).values[prompt]
        print(f"{float(c):+.1f}  {texts[prompt]}{text!r}")
