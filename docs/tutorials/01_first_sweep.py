# %% [markdown]
# # A first sweep
#
# Where does a language model keep the answer, on its way from the first layer to the last? The
# question is put by *activation patching*: run a prompt and its twin, put one internal value of the
# first run into the second, and see how much of the first one's answer comes back. A sweep does
# that for every layer and position.
#
# The model is SmolLM2-135M-Instruct, a real one, fetched once (98 MB).

# %%
import numpy as np

import jaxinterp as ji
from jaxinterp import report

model, tokenizer = ji.load("smollm2-135m-instruct")
print(model.config.n_layers, "layers,", model.config.n_heads, "heads, width", model.config.d_model)

# %% [markdown]
# A *task* is a set of clean prompts with corrupted twins, aligned token by token, and the metric
# that tells them apart. Here: indirect object identification (IOI). Whether the model can do it at
# all comes first.

# %%
task = ji.tasks.ioi(tokenizer, n=8, seed=0)
print(task.clean_text[0], "->", tokenizer.decode([int(task.answers[0])]))
print(task.corrupted_text[0], "->", tokenizer.decode([int(task.wrong[0])]))
ji.tasks.check(model, task)

# %% [markdown]
# Patch the residual stream at every layer and position: 30 x 14 experiments for every prompt, in a
# few compiled programs. The result is a labelled array, one number per experiment and prompt.

# %%
twins = {"clean": task.clean, "corrupted": task.corrupted, "metric": task.metric}
stream = ji.patch(
    model, **twins, site="resid_pre", over=("layer", "position"), tokenizer=tokenizer,
    names=task.labels(),
)  # fmt: skip
stream.sizes

# %% [markdown]
# `share` is the fraction of the effect that comes back: 0 for the corrupted run, 1 for the clean
# one. Before the twins' first difference nothing can change; at the last layer all is at the end.

# %%
share = ji.share(stream)
assert abs(float(share.isel(layer=0, position=0))) < 1e-4
assert abs(float(share.isel(layer=-1, position=-1)) - 1) < 0.2
report.heatmap(stream)

# %% [markdown]
# Left to right are the tokens (… marks those that differ between prompts, brackets hold roles),
# upwards the layers. In the early ones the answer comes back where the second subject stands (S2),
# from about layer 20 on at the last token (END): that is the way it takes.
#
# The same with `site="z"`: what each head writes. The strongest, with the interval of
# the share of means, and the spread of single prompts:

# %%
heads = ji.patch(model, **twins, site="z", over=("layer", "head"), tokenizer=tokenizer)
print(report.summary_table(heads, k=6))

# %% [markdown]
# Every result carries what it claims to be of: the model and a hash of its weights, the prompts,
# the metric, the versions. `ji.results.save(heads, "heads.nc")` keeps it all;
# `report.write_report({"heads": heads}, "report.html", title="IOI")` makes a page that needs no
# network.

# %%
for name in ("model", "weights", "metric", "site", "direction"):
    print(f"{name:10}", heads.attrs.get(name))

# %% [markdown]
# Is the strongest head's share a fact about all prompts, or about a few? One by one:

# %%
mean = ji.share(heads)
layer, head = np.unravel_index(np.argmax(mean.values), mean.shape)
each = ji.share(heads, prompts="each").isel(layer=layer, head=head)
print(f"head {layer}.{head}:", np.round(each.values, 2))
