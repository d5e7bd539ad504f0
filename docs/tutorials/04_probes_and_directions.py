# %% [markdown]
# # Probes and directions: decodable is not used
#
# A linear probe says that something can be read off an activation. It does not say that the model
# reads it. The two are kept apart here: probe with controls, then erase what was found, and measure
# behaviour.

# %%
import numpy as np

import jaxinterp as ji
from jaxinterp import directions, probes

model, tokenizer = ji.load("smollm2-135m-instruct")
task = ji.tasks.subject_verb_agreement(tokenizer, n=64, seed=0)
print(task.clean_text[0], "->", tokenizer.decode([int(task.answers[0])]))

# %% [markdown]
# The stream at the subject, before every layer: [layer, prompt, width], so that `X[12]` is what
# layer 12 reads and layer 11 leaves. Is the subject plural? Splits keep a noun's two numbers on one
# side, else the probe could learn nouns. Beside the probe: one fitted to shuffled labels, one that
# sees a single random direction, and always saying what is commoner among the nouns trained on.

# %%
X = ji.collect(model, task.clean, task.roles["subject"])
plural = np.asarray(task.prompts["number"]) == "plural"
nouns = np.char.rstrip(np.asarray(task.prompts["subject"], str), "s")
at = [0, 1, 12, 20]
found = probes.probe(X[at], plural, points=at, groups=nouns)
found[["accuracy", "shuffled", "random_direction", "majority"]].mean("split").to_dataframe().round(
    2
)

# %% [markdown]
# Readable everywhere, before the first layer too: the token itself says it. Now *erase* it after a
# layer (LEACE: no linear probe finds it afterwards) and see what the model prefers, beside random
# erasures of the same rank.

# %%
used = ji.probe_and_erase(
    model, task.clean, plural, task.metric, position=task.roles["subject"], groups=nouns,
    layers=[0, 11, 25, 28], placebos=3,
)  # fmt: skip
print((used.value - used.clean).mean("prompt").to_pandas().round(2))
print(used[["accuracy", "accuracy_erased"]].to_dataframe().round(2))

# %% [markdown]
# After layer 28 the number can be read at the subject as well as ever, and nothing uses it there
# (one layer is left): what is decodable is not what is used.
#
# A *direction* is a hypothesis with an algebra. From means, then pushed along:

# %%
toward = directions.from_means(X[12], plural)
sign = np.where(plural, -1, 1)[:, None]
pushed = ji.add(
    "resid_post", (sign * toward.vector)[:, None], layer=11, position=task.roles["subject"]
)
before, after = (
    float(ji.evaluate(task.metric, model, task.clean, edit).mean()) for edit in ((), pushed)
)
print(f"logit of the right verb minus the other's: {before:+.2f}, moved {after:+.2f}")
assert after < 0 < before

# %% [markdown]
# Is it this direction, or any push of that length?

# %%
for other in directions.random_like(toward, 3, seed=0):
    edit = ji.add(
        "resid_post", (sign * other.vector)[:, None], layer=11, position=task.roles["subject"]
    )
    print(f"random: {float(ji.evaluate(task.metric, model, task.clean, edit).mean()):+.2f}")
