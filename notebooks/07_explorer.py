# %% [markdown]
# # 7 · What does Whisper hear in a clip, and what would it write had it heard otherwise?
#
# > Go from a clip to its features, from a feature to its clips, and back; then turn a feature up and read what changes.
#
# **You will** ask features and clips in turn, in the explorer or by a line of Python, and change what Whisper hears.
#
# **You will learn** why to begin with a clip and not with a number, and to keep a random feature beside every change.
#
# **You need** the results of notebooks 1, 2 and 6.
#
# **Time** demo under a minute on 2 cores · `tiny` the same, for steps that are stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.experiments import dashboards, explore, feature_index, pipeline, sae_comparison
from whisper_sae.explorer.api import FIELDS
from whisper_sae.report import results
from whisper_sae.viz import display

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## Begin with a clip
#
# Hundreds of features, and most numbers say nothing: who browses them in order hears noise first. A clip is a better
# door. Whatever is asked below is asked of the same functions that the explorer asks; they take JSON and give JSON,
# and need neither a browser nor a server.

# %%
site = run.focus
asked = explore.questions(run, seed, site)
heard = pipeline.table(run, cache.need(pipeline.clips(run, seed)))

# %% tags=["show-code"]
clip = int(np.random.default_rng(seed).integers(len(heard)))
told = asked.answer({"ask": "clip", "clip": clip, "by": "share", "most": 20})
strongest = asked.answer({"ask": "clip", "clip": clip, "by": "peak", "most": 6})["found"]

# %% tags=["hide-input"]
columns = ["feature", "value", "share", "at", "word"]
peaks = pd.DataFrame(told["found"][:8])[columns].set_axis(["feature", "peak", "of its highest", "at, s", "in"], axis=1)
display.table(
    peaks,
    caption=f"Clip {told['clip']['name']}, “{told['clip']['text']}”: of {told['fires']} features that fire in it, those that "
    "come nearest to their highest value anywhere.",
)
display.say(sae_comparison.seed_note(run, seed, run.focus))

# %% [markdown]
# Ordered by height, features that are loud everywhere would come first. Ordered by **share**, what is rare comes first:
# the peak over the farthest value that the feature has in the whole corpus. A feature that fires in this clip alone has
# a share of 1 for nothing; so one is taken that fires on a thousandth of all frames at least.
#
# ## From a feature to its clips
#
# That feature, asked for its clips. In a notebook that runs, the next cell is the explorer: search by number,
# range and size; play; mark; compare; change; write a note. On this page stands what can be shown of it without an
# answer: the clips in which the feature peaks highest.

# %%
often = [row["feature"] for row in told["found"] if row["rate"] > 1e-3]
feature = (often or [row["feature"] for row in strongest])[0]

# %% tags=["show-code"]
explore.explore(run, seed, site, feature=feature)

# %% [markdown]
# The loudest clips flatter a feature. A **range** shows what it does when it is not at its best: if these clips have
# nothing to do with the ones above, it stands for more than one thing.

# %% tags=["show-code"]
found = asked.answer({"ask": "feature", "feature": feature, "most": 8})
weak = asked.answer({"ask": "feature", "feature": feature, "high": found["high"] / 2, "most": 8})

# %% tags=["hide-input"]
rows = [
    {"range": name, "clip": row["clip"]["name"], "peak": row["value"], "at, s": row["at"], "in": row["word"]}
    for name, answer in {"highest": found, "below half": weak}.items()
    for row in answer["found"][:5]
]
display.table(
    pd.DataFrame(rows, columns=["range", "clip", "peak", "at, s", "in"]),
    caption=f"Feature {feature}: the five highest of {found['matched']} clips, and of the {weak['matched']} whose peak is "
    "below half of its highest value.",
)

# %% [markdown]
# ## What sets two groups apart
#
# Two clips are compared by the shares of their peaks, two groups by Cohen's d of speakers. It is chosen among all
# features, so some d is large by chance alone: it says where to listen, and notebook 4 is for who wants to know.

# %%
about = asked.answer({"ask": "about"})
groups, left_out = about["groups"], about["left_out"]
column = next((name for name in ("gender", "accent") if name in groups), next(iter(groups), None))

# %% tags=["hide-input"]
if left_out:
    rows = [(name, len(groups.get(name, ())), why) for name, why in left_out.items()]
    display.table(
        pd.DataFrame(rows, columns=["column", "groups", "left out"]),
        caption="What of the columns cannot be compared in the explorer, and why.",
    )
apart = {}
if column:
    sides = [{"column": column, "value": value} for value in groups[column][:2]]
    apart = asked.answer({"ask": "compare", "a": sides[0], "b": sides[1], "most": 5})
if "error" in apart:
    display.say(f"No two groups of {column} can be compared: {apart['error']}.")
elif apart:
    shown = pd.DataFrame(apart["found"], columns=["feature", "a", "b", "difference", "speakers_a", "speakers_b"])
    display.table(
        shown.set_axis(["feature", *apart["names"], "d", "speakers", "and"], axis=1),
        caption=f"The five of {apart['compared']} features that are farthest apart between "
        f"{' and '.join(apart['names'])}: means over speakers.",
    )
    if apart["in_both"]:
        display.say(f"In both groups and left out: {len(apart['in_both'])} speakers.")

# %% [markdown]
# ## Change what it hears
#
# The features with the highest peaks in the clip are ablated, one after another and each in the whole clip; beside each
# stands a matched control, if there is one: another feature whose firing rate and rate × size in the clip are within a
# factor of 1.65. The dictionary's error stays where it is, so that nothing changes but the feature.

# %% tags=["show-code"]
changes = [{"ask": "change", "clip": clip, "scales": {str(row["feature"]): 0}, "control": True} for row in strongest]
wrote = [asked.answer(change) for change in changes]

# %% tags=["hide-input"]
lines = [
    {"silenced": next(iter(change["scales"])), "written": answer["edited"],
     "and without": ", ".join(map(str, answer["control"]["features"])), "is written": answer["control"]["text"]}
    for change, answer in zip(changes, wrote, strict=True) if "edited" in answer
]  # fmt: skip
if lines:
    display.table(
        pd.DataFrame(lines),
        caption=f"As it is, Whisper writes “{wrote[0]['baseline']}”; re-said by the dictionary “{wrote[0]['reconstructed']}”.",
    )
different = sum(answer.get("edited") != answer.get("baseline") for answer in wrote)
beside = [answer for answer in wrote if "edited" in answer and answer["control"]["features"]]
controls = sum(answer["control"]["text"] != answer["baseline"] for answer in beside)
display.say(
    f"{different} of {len(wrote)} features change what is written when they are ablated; "
    f"of their {len(beside)} matched controls {controls}."
)

# %% [markdown]
# ## To share
#
# The **atlas** is one file that needs neither Python nor a network: features to sort, search and hear, and whole clips
# with the features that peak in them, each a click from the other.

# %%
dashboards.page(run, seed, site, most=12, each=4, name="atlas")  # most=300 is a file of some 15 MB

# %% [markdown]
# ## Without a dictionary
#
# Neurons are asked in the same way, and have two sides. What peaks in the same clip among them:

# %% tags=["hide-input"]
cache.make(feature_index.codes(run, seed, site, of="neurons"))
neurons = explore.questions(run, seed, site, of="neurons")
plain = neurons.answer({"ask": "clip", "clip": clip, "by": "share", "most": 5})
display.table(
    pd.DataFrame(plain["found"])[columns].set_axis(["neuron", "peak", "of its highest", "at, s", "in"], axis=1),
    caption=f"{plain['fires']} of {neurons.index.features} neurons are not zero in the clip; of the dictionary's "
    f"{asked.index.features} features {told['fires']} are.",
)

# %% [markdown]
# <aside class="doubt">
#
# **What would change my mind**
#
# *That a clip is the better door*: features found by number that turn out as clear as those found by a clip.
# *That a change is the feature's doing*: controls that change the text as often. Six features of one clip are an
# illustration; notebook 5 has the count.
# *That silence means absence*: what a feature carries may be said again further on, by others.
#
# </aside>

# %% tags=["checks"]
same = asked.answer({"ask": "change", "clip": clip, "scales": {str(feature): 1}})
assert same.get("edited") == same.get("baseline"), "a feature times 1 changes something"
assert sum(found["histogram"]["counts"]) == found["searched"] == len(heard)
assert all(row["value"] <= found["high"] / 2 for row in weak["found"])
assert "error" in asked.answer({"ask": "feature", "feature": -1})

# %% tags=["nbval-check-output"]
print("questions:", ", ".join(FIELDS))
print(
    "a feature that there is not:",
    asked.answer({"ask": "feature", "feature": -1})["error"].split(",")[0].split(" to ")[0],
)
print("a path is no clip:", "error" in asked.answer({"ask": "media", "clip": "/etc/passwd"}))

# %% tags=["save"]
results.save(
    "07_explorer",
    run.name,
    headline=f"In one clip {told['fires']} of {asked.index.features} features fire; of the six with the highest peaks "
    f"{different} change what Whisper writes when ablated, and {controls} of their {len(beside)} matched controls.",
    tables={"clip": peaks, "changes": pd.DataFrame(lines)},
)

# %% [markdown]
# ## What was found, what was dropped
#
# A clip leads to features that can be heard, and a feature to clips that show what it is; a change shows whether it
# matters. A server with a page of its own was not built: everything travels through the notebook, and opens no port.
# **Next**, your own recordings: the explorer takes a file, or the microphone.
