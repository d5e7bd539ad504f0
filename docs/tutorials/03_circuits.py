# %% [markdown]
# # Circuits
#
# A circuit is a set of edges: who writes what whom reads. Three questions, in this order: which
# edges carry the effect, does the set that was found carry it alone, and does anything besides it
# do the same work? A model whose circuit is known by construction comes first, so that the method
# itself is tested before it is believed.

# %%
import jaxinterp as ji
from jaxinterp import circuits
from jaxinterp.algorithmic import repeats

# %% [markdown]
# `ji.handbuilt` has transformers written as weights, with their true edges. Exact discovery finds
# those and no others.

# %%
known = ji.handbuilt.previous_token_induction()
pairs = known.make(16, 8)
metric = known.metric(pairs.answers, pairs.wrong)
found = circuits.acdc(
    known.model, clean=pairs.clean, corrupted=pairs.corrupted, metric=metric, threshold=0.01
)
print(sorted(found.names))
assert set(found.names) == known.edges["resample"]

# %% [markdown]
# Now a trained one. Every edge is exchanged by itself for what it carries in the corrupted run:
# exact edge patching, no approximation.

# %%
model, tokenizer = ji.load("induction-2l")
task = repeats.task(32, seed=0)
twins = {"clean": task.clean, "corrupted": task.corrupted, "metric": task.metric}
exact = circuits.patch_edges(model, **twins)
effect = (exact - exact.clean).mean("prompt").to_series()
effect.sort_values().head(8).round(2)  # a0.h2->a1.h3<k>: head 0.2, read by the keys of head 1.3

# %% [markdown]
# Estimates by gradients (here integrated, EAP-IG) cost a few passes for all edges together. How far
# are they off? `compare` says, instead of trusting them.

# %%
guessed = circuits.attribute_edges(model, **twins, method="eap-ig-inputs")
compared = ji.compare(exact, guessed)
for name in ("pearson", "spearman", "sign_flips", "max_error"):
    print(f"{name:10} {float(compared[name]):.3f}")

# %% [markdown]
# Grow circuits of several sizes from the exact scores, and measure how much of the effect each
# carries alone, all other edges carrying the corrupted run. An edge is worth little before the rest
# of its path is there.

# %%
scores = circuits.importance(exact)
grown = [circuits.greedy_edges(model, scores, n) for n in (4, 8, 16, 32)]
value = circuits.evaluate_circuits(model, grown, **twins)
shares = circuits.faithfulness(value).values
for circuit, share in zip(grown, shares, strict=True):
    print(f"{len(circuit):3} edges carry {share:.2f}:", ", ".join(circuit.names[:3]), "...")

# %% [markdown]
# Is it complete? Knock out half of its nodes in the circuit and in the whole model: if the two fall
# differently, something else does the work.

# %%
knocked_out = circuits.incompleteness(model, grown[-1], samples=16, **twins)
worst, _ = circuits.worst_incompleteness(knocked_out)
whole = float((exact.clean - exact.corrupted).mean())
print(f"16 random sets of nodes: at most {worst:.2f} logits apart, of {whole:.2f} in all")
