# %% [markdown]
# # Steering, with its side effects
#
# Adding a direction to the stream moves behaviour. So may random directions of the same length, and
# unrelated text suffers: both are measured beside it.

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
norms = steering.mean_norms(model, prompts)  # one unit for all that follows
options = {"layers": [layer], "coefficients": [-0.2, -0.1, 0.1, 0.2], "norms": norms, "seed": 0}
steered = ji.steer(model, prompts, metric, {"sentiment": direction}, placebos=3, **options)
effect = (steered - steered.clean).mean("prompt").isel(layer=0).to_pandas().round(2)
print(effect)

# %% [markdown]
# Coefficients are in units of the stream's mean norm at the layer. The columns called random are
# the placebos. And unrelated text? KL of the next token, in nats, added everywhere: about what a
# random direction does, and not nothing.

# %%
rows = corpora.read_lines(ji.fetch("wikitext-2") / "valid.raw.gz")
block = next(corpora.packed(rows, tokenizer, 32, 4))
apart = steering.side_effects(model, block, {"sentiment": direction}, placebos=1, **options)
print(apart.mean("prompt").isel(layer=0).to_pandas().round(3))
report.steering_curves(steered, title="Steering")

# %% [markdown]
# What it reads like, three times as strong, with the mean loss of the new tokens under the model as
# it is: the price in fluency. A metric that moves is not yet a text that does.

# %%
made = steering.continuations(
    model, prompts[:2], direction, layer, [-0.6, 0.0, 0.6], 10, tokenizer=tokenizer, norms=norms
)
for prompt in made.prompt.values:
    for c in made.coefficient.values:
        one = made.sel(coefficient=c).isel(prompt=prompt)
        print(f"{float(c):+.1f}  loss {float(one.loss):.2f}  {texts[prompt] + one.text.item()!r}")
