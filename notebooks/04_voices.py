# %% [markdown]
# # 4 · Which features tell women from men, and accent from accent?
#
# > Few: a model that was made to write down words says little of who says them, and most of what a careless test finds is chance.
#
# **You will** compute one effect size per feature, of speakers, set it against chance, and hear what is left.
#
# **You will learn** why counting frames invents significance, what a thousand tests give when nothing is there, what so few speakers
# can show at all, and how a label that goes along with loudness comes to look like a finding.
#
# **You need** the results of notebooks 0 to 2.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 2 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd

from whisper_sae import (
    atlas,
    effects,
    figures,
    findings,
    intervals,
    meaning,
    power,
    profiles,
    recipes,
    speech,
    store,
    voices,
)
from whisper_sae import figures_of_voices as draw

run = profiles.choose(profile)
figures.use_style()

# %% [markdown]
# ## The unit is the speaker
#
# Two hundred frames of one voice are one voice. The system this project began from tested 1.5 million frames of 984 clips as if each
# were a person, and so had p-values of hundreds of zeros. Here a clip becomes two numbers a feature, over its frames of
# speech: on what share of them the feature fires, its **rate**, and how strongly **when it fires**. A speaker is the mean of their
# clips, counts once, and n is the number of speakers. A feature that is silent in a voice has a rate of 0 there, and no strength.

# %% tags=["show-code"]
clips, codes = store.need(recipes.clips(run, seed)), store.make(meaning.codes(run, seed, run.focus))
heard = recipes.table(run, clips)
said = store.make(voices.of_features(run, seed, run.focus))
casts = {measure: voices.cast(said, heard, measure) for measure in voices.MEASURES}  # (speaker, feature) each
rates = casts["rate"]
labels = list(rates.labels)
binary = [name for name in labels if voices.answerable(rates, name)]  # enough speakers of both groups
wide = [name for name in labels if rates.labels[name].replace("", np.nan).nunique() > 2]

# %% tags=["hide-input"]
figures.say(
    f"{said.facts['clips']:,} clips with {said.facts['frames']:,} frames of speech at {run.focus}; {len(rates.means)} speakers {' to '.join(map(str, sorted({rates.clips.min(), rates.clips.max()})))} clips each; {rates.nameless} clips name no speaker and are left out. Told of speakers: {', '.join(labels) or 'nothing'}."
)
named = heard.loc[said.table("clips.csv")["clip"]].query("speaker != ''")
parts = [
    speech.balance(named[named[name] != ""], name).rename(columns={name: "group"}).assign(label=name) for name in labels
]
balance = pd.concat([part[["label", *part.columns[:-1]]] for part in parts]) if parts else pd.DataFrame()
figures.table(balance, caption="Who counts: clips, speakers and minutes of each group.")

# %% [markdown]
# ## How far apart are two groups?
#
# **Cohen's d** is the difference of two means in standard deviations of speakers; **g** is the same less what few speakers
# inflate it by; **AUC** is the probability that a speaker of the first group is higher. Among hundreds of features some d is
# large by accident. So labels are dealt anew among the speakers, many thousand times. The **threshold** is the |d|
# that the greatest of all features exceeds in one deal of twenty; **q** is the false discovery rate at which a feature is found.

# %% tags=["show-code"]
label = binary[0] if binary else ""
found = {
    measure: voices.two(cast, label, seed=seed)
    for measure, cast in casts.items()
    if label and voices.asked(cast, label).any()
}
top = found["rate"].table if found else pd.DataFrame({"feature": [], "d": []})

# %% tags=["figure"]
if found:
    lines = {measure.replace("_", " "): one.chance.d for measure, one in found.items()}
    bands = {measure.replace("_", " "): one.chance.threshold for measure, one in found.items()}
    fig = draw.ordered(lines, bands)
    fig.axes[0].set(title=f"{label}: all features in order")
    figures.show(fig, alt="; ".join(f"{name}: greatest |d| {np.nanmax(np.abs(lines[name])):.2f}, chance {bands[name]:.2f}" for name in lines),
                 caption="|d| of each feature. Dotted: what the greatest of them exceeds in 5 % of deals of the labels; dots are beyond it.")  # fmt: skip

# %% tags=["hide-input"]
counts = pd.DataFrame([voices.counted(one, label, measure) for measure, one in found.items()])
figures.table(counts.drop(columns="label", errors="ignore"), caption="Found at a false discovery rate of 5 %; beyond the threshold, where any error at all has a chance of 5 %; "
              "with an uncorrected p of at most 0.05, and how many have it when labels are dealt: mean and 95 %.")  # fmt: skip

# %% [markdown]
# The column that matters is the last: so many features have p of 0.05 when the labels mean nothing. Without it, the number beside
# it looks like a discovery. Here are the foremost with their intervals, which at six to sixty speakers a group
# hold the truth 93 to 97 times of 100 for most kinds of features; but those of the *foremost* lie too far out, for that is why they were chosen.

# %% tags=["figure"]
if found:
    chance = found["rate"].chance
    fig = draw.forest(top, chance.groups, chance.threshold)
    fig.axes[0].set(title=f"{label}: the foremost features, by rate")
    figures.show(fig, alt="; ".join(f"{row.feature}: {row.d:.2f} ({row.low:.2f} to {row.high:.2f})" for row in top.head(5).itertuples()),
                 caption="d with its 95 % interval over speakers. Grey: what chance gives to the greatest; filled marks lie beyond.")  # fmt: skip

# %% [markdown]
# ## Hear it
#
# A number says that a feature differs, and not what it hears. Below, one voice of each group says it equally strongly, a second of
# sound around its peak. If they have a vowel in common and not a timbre, then the feature is of a sound that one group makes more often.

# %% tags=["show-code"]
if found:
    number = int(top.feature.iloc[0])
    shelf = meaning.examples_in(run, seed, run.focus)
    pairs = voices.alike(shelf, heard, number, label, chance.groups)
    figures.voices(meaning.sounds(heard, pairs), speech.RATE, caption=f"Feature {number}, d = {top.d.iloc[0]:.2f}: {' and '.join(chance.groups)} at equal activation.")  # fmt: skip

# %% [markdown]
# ## More than two groups
#
# Of accents, **η²** is the share of the variance of speakers that lies between groups. Many groups of few speakers have much of it by
# chance; **ω²** is what is left without that. Labels are dealt within gender, where the two are crossed.

# %% tags=["show-code"]
strata = label if wide and label and voices.crossed(rates, wide[0], label) else ""
many = voices.many(rates, wide[0], strata, seed) if wide else None

# %% tags=["hide-input"]
if many:
    sure = int((many.table.q <= 0.05).sum())
    figures.table(
        many.table.head(6)[["feature", "eta_squared", "omega_squared", "f"]].set_axis(
            ["feature", "η²", "ω²", "F"], axis=1
        ),
        caption=f"The features that {wide[0]} tells most of.",
    )
    figures.say(
        f"Of {len(many.table):,} features {sure} are found at 5 %, and {(many.table.eta_squared > many.threshold).sum()} have an η² above {many.threshold:.2f}, which chance "
        f"exceeds in one deal of twenty. p is at most 0.05 in {(many.table.p <= 0.05).sum()}; by chance in {many.by_chance.mean():.0f}, one in twenty {np.quantile(many.by_chance, 0.95):.0f} or more."
    )

# %% tags=["figure"]
if many:
    first = int(many.table.feature[0])
    names, d = effects.pairwise(rates.means[:, [first]], rates.labels[wide[0]])
    figures.show(draw.apart(names, d[:, :, 0], first),
                 alt=f"d between groups lies between {d.min():.1f} and {d.max():.1f}.",
                 caption=f"d between any two groups in the feature that {wide[0]} tells most of; so few speakers inflate it.")  # fmt: skip

# %% [markdown]
# ## Is it the label, or what goes along with it?
#
# Of the demo we know the truth. Its `null_label` was dealt by lot and must give nothing. Its `mic` is nothing but loudness: a
# far one is softer. Whatever it shows has to vanish when level is held fixed, by taking out of features *and* grouping what
# a straight line through it tells. The other way round: pitch is a part of what makes a voice a woman's, so with pitch held
# fixed little of gender is *left*, and nothing can be said.

# %% tags=["show-code"]
told = voices.covariates(said, heard)
others = {name: voices.two(rates, name, seed=seed) if name != label else found["rate"] for name in binary}
within = {
    f"{name} within {other}": voices.two(rates, name, other, seed)
    for name in binary
    for other in wide[:1] if voices.crossed(rates, name, other)
}  # fmt: skip
left = [voices.held(rates, name, told) for name in binary if len(told.columns)]
held = pd.concat(left) if left else pd.DataFrame()

# %% tags=["hide-input"]
every = pd.DataFrame([voices.counted(one, name, "rate") for name, one in (others | within).items()])
figures.table(
    every.drop(columns=["measure", "tested"], errors="ignore"),
    caption="The same question of every label, and within groups of another where they are crossed.",
)
if len(held):
    apart = held.loc[held.d.abs() >= 1, "held"].unique()
    shown = held[held.held.isin(apart)].set_axis(
        ["label", "held fixed", "its own d", "left", "found", "greatest |t|", "before", "|t| before"], axis=1
    )
    figures.table(
        shown,
        caption="With one number held fixed, of those that differ by an SD or more between any two groups: the share of the grouping that it does "
        "not tell; features found by t-tests at a false discovery rate of 5 %, and the greatest |t|; and both before.",
    )

# %% [markdown]
# ## What could have been seen?
#
# "Not found" is no "not there". **Power** is the probability that a true difference is seen. It falls with the number of features, since the bar is
# higher; it grows with speakers, and hardly with clips: the tenth clip of a voice tells less than the first, the less the more alike clips of a
# voice are (**ICC**). The mark is the least d that is seen in four of five corpora like this one.

# %% tags=["show-code"]
if found:
    n1, n2 = (int((rates.labels[label] == name).sum()) for name in chance.groups)
    strict = power.level_of(chance.threshold, n1, n2)  # after correction
    many_of = f"{len(top)} features"
    designs = {f"{n1} and {n2}, one feature": (n1, n2, 0.05), f"{n1} and {n2}, {many_of}": (n1, n2, strict)}
    designs |= {f"{n} and {n}, {many_of}": (n, n, strict) for n in (6, 4 * max(n1, n2))}
    curves = {name: power.curve(a, b, level=level, most=3) for name, (a, b, level) in designs.items()}
    least = {name: power.detectable(a, b, level) for name, (a, b, level) in designs.items()}

# %% tags=["figure"]
if found:
    fig = draw.powers(curves, least)
    fig.axes[0].set(title="What can be seen with so many speakers")
    figures.show(fig, alt="; ".join(f"{name}: d {d:.2f}" for name, d in least.items()),
                 caption="Probability that a true d is seen, and the d that is seen in 80 %. Speakers of each group; corrected for the number of features.")  # fmt: skip

# %% tags=["hide-input"]
needed, too_few = pd.DataFrame(), "nothing was refused"
if found:
    icc = float(
        np.nanmedian(
            power.likeness(
                voices.values(said, "rate")[:, top.feature], heard.speaker[said.table("clips.csv")["clip"]]
            ).icc
        )
    )
    needed = power.needed([0.2, 0.5, 0.8], [1, 10], [round(max(icc, 0), 3), 0.3], level=strict)
    figures.table(
        voices.by_design(needed),
        caption=f"Speakers a group who are needed to see a difference, in SDs of clips, after correction. The median ICC here is {icc:.3f}.",
    )
    few = np.flatnonzero(rates.labels[label] == chance.groups[0])[5:]  # leaves five
    try:
        intervals.of_d(np.delete(rates.means, few, 0), rates.labels[label].drop(rates.labels.index[few]), chance.groups)
    except ValueError as refusal:
        too_few = str(refusal)
    figures.say(f"Asked with five speakers of one group, we refuse: “{too_few}”.")

# %% [markdown]
# ## All features together
#
# What no feature tells by itself many may tell together. A **probe** weighs inputs and is asked about speakers it never met.
# **Balanced accuracy** is the mean over groups of the share read right, so always saying the majority scores no better than chance.
# Whatever the features give must be compared with what the frames that they re-say, sound itself, and a dictionary of random directions give.

# %%
labelled = {"gender": ["accent"], "accent": ["gender"], "mic": ["gender", "accent"], "null_label": ["gender", "accent"]}
stored = heard.loc[said.table("clips.csv")["clip"]]
asked = recipes.askable(stored, {name: [o for o in labelled.get(name, []) if o in labels] for name in labels})
for of in ("random dictionary", "principal directions"):
    store.make(meaning.codes(run, seed, run.focus, of)), store.make(voices.of_features(run, seed, run.focus, of))
simple = store.make(recipes.label_probe(run, seed, asked))
probed = store.make(voices.probed(run, seed, run.focus, asked))
read = voices.everything(probed, simple, run.focus, rates)
scores = voices.compared(read, ["label", "input", "width"])

# %% tags=["hide-input"]
widest = scores.loc[scores.groupby(["label", "input"], sort=False).width.idxmax()]
figures.table(
    voices.side_by_side(widest),
    caption="Balanced accuracy in % on clips of speakers that the probe never met, with its 95 % interval over speakers.",
)
if label in asked:
    ranked = widest[widest.label == label].sort_values("balanced", ascending=False)
    figures.say(
        f"Read off speakers unheard, {label} is right in "
        + ", ".join(f"{row.balanced:.0%} from {row.input}" for row in ranked.itertuples())
        + "."
    )

# %% [markdown]
# How few of them would do? The best k are chosen on the training speakers alone, anew in each fold. A line that rises at once
# is a dictionary that has a feature for the label; one that rises slowly has it spread over many.

# %% tags=["figure"]
if label in asked:
    some = scores[(scores.label == label) & scores.input.isin(["all features", "random dictionary"])].sort_values(
        ["input", "width"]
    )
    fig = draw.sparse(some, 1 / read[read.label == label].told.nunique())
    fig.axes[0].set(title=f"{label}, from the best k features")
    figures.show(fig, alt="; ".join(f"{row.input}, {row.width}: {row.balanced:.2f}" for row in some.itertuples()),
                 caption="Bars are 95 % intervals over speakers.")  # fmt: skip

# %% [markdown]
# ## The same data, asked as it should not be
#
# A random forest is asked for gender from single frames, as the system before this one did, with frames split at random, and then of speakers it never
# met; last, split by frame again, for a gender dealt by lot, of which nothing can be known. What it scores there is what knowing the voices is worth.

# %% tags=["hide-input"]
planted = store.make(atlas.forests(run, seed, run.focus))
forest = pd.DataFrame() if planted.facts["why"] else planted.table("read.csv")
if len(forest):
    figures.table(forest, caption="Balanced accuracy of one forest, with its 95 % interval over speakers.")
else:
    figures.say(f"No forest: {planted.facts['why']}.")

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That a feature tells gender*: sentences. Each speaker says others, and a feature of a vowel differs where texts do; the same sentences by
# everyone would settle it. *That few features do*: more speakers, for the power above says what was too small to be seen. *That accents differ*: eight voices
# each, made by one synthesiser, which pronounces an accent alike for all its speakers; people do not. *That a label is innocent after adjustment*: a
# line was taken out, not a curve, and covariates that nobody wrote down are still there. *That the model uses any of it*: nothing here;
# for that the feature has to be silenced.
# </aside>
#
# ## Checks
#
# Means are those of clips; a feature planted in the speakers of one group is found, and its true d lies in its interval in most of forty; labels by lot find nothing.

# %% tags=["checks"]
one = int(np.nanargmax(rates.means.std(axis=0)))
by_hand = (
    pd.Series(voices.values(said, "rate")[:, one])
    .groupby(heard.speaker[said.table("clips.csv")["clip"]].to_numpy())
    .mean()
    .drop("", errors="ignore")
)
assert np.allclose(by_hand.sort_index(), rates.means[:, one]) and rates.means.min() >= 0 and rates.means.max() <= 1
for each in (others | found).values():
    assert (each.table.auc.between(0, 1)).all() and (each.table.q >= each.table.p - 1e-12).all()
    assert (each.table.g.abs() <= each.table.d.abs() + 1e-12).all()

# %% tags=["checks"]
if run.name == "demo":
    x = (
        np.random.default_rng(seed).normal(size=(len(rates.means), 40))
        + 2.0 * (rates.labels.gender == "female").to_numpy()[:, None]
    )
    true = intervals.of_d(x, rates.labels.gender)
    assert ((true.low < 2) & (true.high > 2)).mean() >= 0.8 and (true.low > 0).all()
    assert every.set_index("label").found["null_label"] <= 2 and found["rate"].chance.beyond.any()
    after = held.set_index(["label", "held"]).found
    assert after["mic", "level_db"] <= 1

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(
    f"{len(rates.means)} speakers, {said.facts['clips']} clips, {said.facts['frames']} frames of speech, {said.facts['features']} features"
)
print("labels of two groups:", ", ".join(binary), "| of more:", ", ".join(wide), "| numbers:", ", ".join(told))

# %% tags=["save"]
news = f"{len(labels)} labels of speakers, none of two groups with {intervals.LEAST} speakers each"
if found:
    news = f"Of {len(top):,} features {int(chance.found.sum())} tell {chance.groups[0]} from {chance.groups[1]} ({len(rates.means)} speakers); with p < 0.05 are {chance.nominal}, by chance {chance.by_chance.mean():.0f}"
news += f"; of {wide[0]} {sure} tell something" if many else ""
tables = {
    "balance": balance,
    "counts": counts,
    "gender": top,
    "labels": every,
    "held": held,
    "needed": needed,
    "probes": scores,
    "forest": forest,
}
tables |= {"groups": many.table} if many else {}
findings.save(
    "04_voices", run.name, headline=f"{news}.", tables=tables, steps=[clips, codes, said, simple, probed, planted]
)

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# A few features differ between women and men by more than chance gives the greatest of all, and more between accents,
# which are differences of sounds. The rest of what has p < 0.05 is about what labels by lot give. Microphones are found, and
# are gone when level is held fixed. Log-mel and the layer's frames tell a voice far better than the dictionary, which has no feature
# for gender: it is spread over many, and random directions keep as much of it.
#
# Dropped: tests of frames and of clips, which find something where nothing is; percentile intervals, which are too
# short for so few speakers; holding all covariates fixed at once, which leaves nothing of gender to compare.
#
# Back: [3 · Do clips lie in clumps, and what are the clumps of?](03_clusters.ipynb)
#
# Next: [6 · What does a feature mean?](06_meaning.ipynb)
