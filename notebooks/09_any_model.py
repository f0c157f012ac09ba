# %% [markdown]
# # 9 · Does the same recipe work on any model, with little memory?
#
# > A net of two hundred lines, trained on this page, is heard one text at a time by the hooks that Whisper has; its features for a
# > word, an ending and damaged places are scored on texts that they were not chosen on, beside its neurons, random directions and the letters themselves.
#
# **You will** train a small restorer of damaged texts, record three of its layers, and ask which features find what in them.
#
# **You will learn** what the recipe needs of a model: a `torch.nn.Module`, a list of items, and a function that makes a batch of them.
#
# **You need** nothing from the other notebooks.
#
# **Time** demo 1 min on 2 cores, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # any profile: it names the folder of the report, and nothing else is read from it
seed = 0  # one seed for everything random here

# %% tags=["setup"]
from dataclasses import replace

import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.activations import modules, store
from whisper_sae.experiments import any_module, toy_model, toy_restoration
from whisper_sae.features import index
from whisper_sae.report import results
from whisper_sae.sae import diagnostics
from whisper_sae.viz import class_plots, display, feature_plots
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## A model of one's own
#
# The texts are entries of an invented archive, of which letters are lost (`x`), a stretch is broken off (`[..]`), or a few are doubtful
# (`<..>`). Nobody else has this model: it is written in `fragments` like any net of one's own. A transformer over letters learns to fill in letters that are covered. What a text has in it is known to the letter, so features can be scored.

# %%
told = toy_model.write_texts(1200, seed)
net = toy_restoration.restorer(told, seed)
made = cache.make(net)  # trains it, unless it is there

# %% tags=["hide-input"]
broken = told[told.damage.str.contains("1")]
display.table(
    broken[["text", "whole", "split"]].head(6).reset_index(drop=True), caption="Damaged entries, and what they were."
)
display.say(
    f"{len(told):,} texts, {len(broken):,} of them damaged. On texts that it never met the restorer fills in {made.facts['restored']:.0%} of the covered letters; "
    f"the commonest letter, every time, would be {made.facts['commonest']:.0%}."
)

# %% [markdown]
# ## One text at a time
#
# `modules` names places as torch does, and a pattern finds them. Each text is heard alone, what is said leaves the device at once, and a thread writes it
# to disk: the memory needed is that of one text, however many there are. Padding never comes up, for nothing is padded. Several at a time would be
# faster and store the same, as a test checks; then whoever makes the batch has to say which places are padding, and these are left out.

# %% tags=["show-code"]
places = modules.sites(toy_model.load(made.path), ["layers.?"])
sites = [places[0], places[len(places) // 2], places[-1]]  # early, middle, late
texts = told.head(600)
recording = any_module.activations(toy_restoration.reading(net, made, texts, run), sites)
acts = cache.make(recording)
held = store.Activations(acts.path)

# %% tags=["hide-input"]
megabytes = toy_restoration.peak_megabytes()
display.say(
    f"{len(places)} layers; of {', '.join(sites)} {acts.facts['frames']:,} letters of width {held.sites[sites[0]]} are stored. "
    f"This whole process, with torch and all its libraries, has held {megabytes:,.0f} MB at most in this run."
)

# %% [markdown]
# ## How sparse is sparse?
#
# The reference reports 1,520 of 1,536 latents firing on every letter, and reads features off them. Under hardly any penalty a dictionary is dense here too,
# and a warning says so; the knob is in the warning. A second one counts rows: a latent needs more than one letter to learn from.

# %%
middle = sites[1]
asked = {"penalty 0.001": replace(toy_restoration.HOW, variant="relu", penalty=1e-3, tokens=40_000), "penalty 1": replace(toy_restoration.HOW, variant="relu", penalty=1.0, tokens=40_000), "BatchTopK": toy_restoration.HOW}  # fmt: skip
swept = {name: cache.make(any_module.dictionary(recording, how, seed, middle)) for name, how in asked.items()}
rates = {name: step.array("firing.npy") for name, step in swept.items()}

# %% tags=["figure"]
display.show(
    class_plots.densities(rates),
    alt="; ".join(
        f"{name}: {share.sum():.0f} of {len(share)} latents fire on a letter" for name, share in rates.items()
    ),
    caption="On held-out texts. A latent at the right end fires on every letter, and tells none from another.",
)

# %% tags=["hide-input"]
for name, share in rates.items():
    display.say(f"{name}: {diagnostics.too_dense(share, asked[name].variant) or 'sparse enough'}.")
rows = len(any_module.fed(acts).rows(middle, "train")[0])
display.say(f"{rows:,} letters to learn from: {diagnostics.too_few(rows, len(share)) or 'enough rows'}.")

# %% [markdown]
# ## Early, middle, late
#
# The same dictionary at three depths, each stopped when held-out letters were said no better. The question to each is the same: which feature finds
# the word *lugal*, the ending *-ak* of a name, digits, marks of damage, and letters beside them? The threshold is chosen on training texts, and
# F1 taken on others. Whatever reads the letter alone finds marks of damage without any model, so it stands beside.

# %%
letters = toy_model.of_letters(texts.text, texts.damage)
trained = {site: cache.make(any_module.dictionary(recording, toy_restoration.HOW, seed, site)) for site in sites}
found = pd.concat([
    toy_restoration.detected(toy_restoration.inputs(acts, site, texts, trained[site], seed), letters, texts, seed).assign(site=site) for site in sites
])  # fmt: skip

# %% tags=["hide-input"]
fit = pd.DataFrame(
    [{"site": site, **{key: step.facts[key] for key in ("l0", "fvu", "dead")}} for site, step in trained.items()]
)
best = found[found.input == "dictionary"].pivot(index="site", columns="pattern", values="f1").reset_index()
display.table(
    fit.merge(best, on="site"),
    caption="FVU, L0 and dead latents on held-out texts, and F1 of the best feature for each pattern.",
)
random = found[found.input == "random dictionary"].pivot(index="site", columns="pattern", values="f1").reset_index()
display.table(random, caption="F1 of the best feature of a random dictionary as large and as sparse.")

# %% tags=["hide-input"]
at = found[found.site == middle].reset_index(drop=True)
compared = at.pivot(index="pattern", columns="input", values="f1").reset_index()
compared["always"] = at.groupby("pattern").always.first().to_numpy()
display.table(
    compared, caption=f"At {middle}: F1 of the best feature of each input; always: what saying it of every letter has."
)

# %% tags=["figure"]
beside = at[at.pattern == "beside"].reset_index(drop=True)
fig = feature_plots.ranking(beside, "input", "f1", "low", "high", beside.always[0])
fig.axes[0].set(title="Letters beside damage: what finds them", xlabel="F1 on texts that nothing was chosen on")
display.show(fig, alt="; ".join(f"{row.input} {row.f1:.2f}" for row in beside.itertuples()) + f"; saying it always {beside.always[0]:.2f}.",
             caption=f"At {middle}; bars are 95 % intervals over texts. A letter alone cannot know what stands beside it.")  # fmt: skip

# %% tags=["hide-input"]
clear = [
    p
    for p in toy_restoration.PATTERNS
    if (part := at[at.pattern == p].set_index("input")).low["dictionary"] > part.high["neurons"]
]
worse = [
    p
    for p in toy_restoration.PATTERNS
    if (part := at[at.pattern == p].set_index("input")).high["dictionary"] < part.low["neurons"]
]
display.say(
    f"At {middle} the dictionary is clearly better than neurons at {', '.join(clear) or 'nothing'}, and clearly worse at {', '.join(worse) or 'nothing'}."
)

# %% [markdown]
# ## Where a feature fires
#
# An index keeps every firing, as it does for Whisper; a piece is a text, a row a letter. Below, the best feature for what is beside damage, with capitals where it fires.

# %%
shelf = index.Index(
    cache.make(
        any_module.codes(recording, any_module.dictionary(recording, toy_restoration.HOW, seed, middle), middle)
    ).path
)
number = int(at[(at.pattern == "beside") & (at.input == "dictionary")].feature.iloc[0])
peaks = shelf.peaks(number).sort_values("value", ascending=False).head(6)

# %% tags=["hide-input"]
shown = []
for piece in peaks.piece:
    pairs = zip(texts.text.iloc[piece], shelf.trace(number, piece), strict=True)
    shown.append("".join(letter.upper() if value > 0 else letter for letter, value in pairs))
display.table(
    pd.DataFrame({"highest": peaks.value.to_numpy(), f"where feature {number} fires": shown}),
    caption="The six texts in which it is highest; capitals where it fires.",
)

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That a feature finds damage and not a letter*: the letter alone, if it did as well. *That the dictionary adds to the neurons*: the table above, where it does
# not. *That depth matters*: another seed, for three layers of one net are no trend. *That memory stays small*: a model whose weights alone are larger; what is
# bounded here is what grows with the texts.
# </aside>
#
# ## Checks
#
# What is stored is what the net says; a hook that changes nothing changes nothing; memory is bounded; the dense dictionary is called dense, and the other not.

# %% tags=["checks"]
loaded = toy_model.load(made.path)
given = toy_model.encoded(texts.text[:1])
said = modules.record(loaded, given, [middle])[middle][0].numpy()
assert np.abs(held.window(middle, 0) - said).max() < 0.02 * np.abs(said).max()
with modules.at(loaded, {middle: lambda hidden: hidden}):
    unchanged = loaded(given)
assert (unchanged == loaded(given)).all()

# %% tags=["checks"]
calibrated, f1 = Calibrations(), at.groupby("input").f1.mean()
letter = found[found.input == "the letter alone"].groupby("pattern").f1.first()
calibrated.at_least(
    "covered letters restored, times the commonest letter's share", made.facts["restored"] / made.facts["commonest"], 2
)
calibrated.at_least(
    "latents active on a letter at penalty 0.001, times BatchTopK's",
    rates["penalty 0.001"].sum() / rates["BatchTopK"].sum(),
    2,
)
calibrated.at_most("F1 of one letter for all ten digits", letter["digit"], 0.5)
calibrated.at_most("megabytes of this process", megabytes, 2000)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(f"{len(texts):,} texts, {len(letters):,} letters; sites {', '.join(sites)} of width {held.sites[middle]}")
print(
    f"{letters.damaged.sum():,} marks of damage, {letters.ak.sum():,} letters of -ak, {letters.lugal.sum():,} of lugal"
)

# %% tags=["save"]
mean = at.groupby("input").f1.mean()
results.save(
    "09_any_model",
    run.name,
    headline=f"On a net trained here, at {middle}: the best features find five patterns with a mean F1 of {mean['dictionary']:.2f}, neurons with {mean['neurons']:.2f}, "
    f"random directions with {mean['random dictionary']:.2f}, the letter alone with {mean['the letter alone']:.2f}; {megabytes:,.0f} MB at most.",
    tables={"calibrations": calibrated.table, "detectors": found, "layers": fit},
    steps=[made, acts, *trained.values()],
)  # fmt: skip

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# Nothing in the store, the dictionary, the index or the scores had to know that these were letters. A model that is not in this project needs what this page gave:
# a module, items, and a function that makes a batch of them.
#
# What is at three depths of one small net is no law; it is how a sweep over layers looks. Tried and dropped: asking for features of damage without the letter alone beside them, by which a mark that *is* in the text counts as understanding.
#
# Back: [8 · Are there features for emotions in what a text encoder says?](08_emotions.ipynb)
