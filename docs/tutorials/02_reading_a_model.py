# %% [markdown]
# # Reading a model
#
# Before changing anything, look: what would each layer say if it were the last, which components
# write the answer, where do heads look. None of this is causal: the last reading is put to the test
# by an intervention.

# %%
import numpy as np

import jaxinterp as ji
from jaxinterp import report
from jaxinterp.algorithmic import repeats

model, tokenizer = ji.load("smollm2-135m-instruct")
prompt = tokenizer(["When Mary and John went to the store, John gave a drink to"])

# %% [markdown]
# The pure function: tokens in, logits and whatever was asked for out. `record` names sites, ours or
# TransformerLens's; each comes stacked over layers.

# %%
out = ji.forward(model, prompt, record=("resid_post", "pattern"))
print({name: value.shape for name, value in out.activations.items()})
best = int(np.argmax(out.logits[0, -1]))
print(tokenizer.decode([best]))

# %% [markdown]
# The logit lens at every layer: what the stream says of the next token.

# %%
said = ji.lens.read(model, prompt, tokenizer=tokenizer, targets=np.array([best]))
last = said.isel(prompt=0, position=-1)
for layer in (0, 10, 20, 25, 28, 30):
    at = last.sel(layer=layer)
    place = f"before layer {layer:2}" if layer < 30 else "after the last"
    print(f"{place}: rank {int(at['rank'])}, says", at.top_text.values[:3].tolist())

# %% [markdown]
# Direct logit attribution: the logit of Mary minus that of John as a sum over embedding, heads and
# MLPs. It adds up.

# %%
mary, john = (tokenizer.single_token(f" {name}") for name in ("Mary", "John"))
parts = ji.attribute_logits(model, prompt, mary, john)
np.testing.assert_allclose(float(parts.sum()), float(parts.total[0]), atol=1e-3)
top = parts.isel(prompt=0).to_series().rename("logits")
top.reindex(top.abs().sort_values(ascending=False).index).head(8).round(2)

# %% [markdown]
# Which heads are *induction* heads, by their attention on random tokens said twice? The shipped
# model `induction-2l` was trained to have them; SmolLM2 grew its own.

# %%
for name in ("induction-2l", "smollm2-135m-instruct"):
    one = model if name == model.name else ji.load(name)[0]
    twice = ji.heads.repeated_tokens(one, n=4, length=24)
    score = ji.heads.pattern_scores(one, twice, "induction").mean("prompt")
    layer, head = np.unravel_index(np.argmax(score.values), score.shape)
    print(f"{name}: head {layer}.{head} gives the induction target {float(score.max()):.2f}")

# %% [markdown]
# A pattern says where a head looks, not that it matters. The test is an intervention: take the head
# away and measure.

# %%
small, its_tokenizer = ji.load("induction-2l")
task = repeats.task(32, seed=5)
grid = ji.zero("z", **ji.product(layer=range(2), head=range(small.config.n_heads)))
change = ji.sweep(small, task.clean, grid, task.metric) - ji.evaluate(
    task.metric, small, task.clean
)
for layer, row in enumerate(np.asarray(change).mean(1).reshape(2, -1)):
    print("  ".join(f"head {layer}.{head} {value:+.2f}" for head, value in enumerate(row)))

# %% [markdown]
# The largest is no induction head: 0.2 looks at the token before, and tells each token what stood
# there, which the induction heads (all of layer 1) look up. Any one of those is missed much less.

# %% [markdown]
# And to look with your own eyes: every head's attention on one prompt as a page to point at.

# %%
view = report.attention_view(ji.heads.attention(small, task.clean[:1], tokenizer=its_tokenizer))
view  # shows the page in a notebook; view.save("attention.html") keeps it
