# %% [markdown]
# # 4 · Which features tell women from men, and accent from accent?
#
# > Few: a model that was made to write down words says little of who says them, and most of what a careless test finds is chance.
#
# **You will** compute one effect size per feature, of speakers, set it against chance, and hear what is left.
#
# **You will learn** why counting frames invents significance, what a thousand tests give when nothing is there, what so few speakers
# can show at all, and how a label that goes along with a dull microphone comes to look like a finding.
#
# **You need** the results of notebooks 0 to 2, and for the last section those of notebook 3.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 2 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.experiments import (
    calibration_study,
    clip_clusters,
    feature_index,
    pipeline,
    sae_comparison,
    sanity_checks,
    speaker_effects,
    speaker_probes,
    speakers,
)
from whisper_sae.report import results
from whisper_sae.stats import intervals
from whisper_sae.viz import display, speaker_plots
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## The unit is the speaker
#
# Two hundred frames of one voice are one voice. The system this project began from tested 1.5 million frames of 984 clips as if each
# were a person, and so had p-values of hundreds of zeros. Here a clip becomes two numbers a feature, over its frames of
# speech: on what share of them the feature fires, its **rate**, and how strongly **when it fires**. A speaker is the mean of their
# clips, counts once, and n is the number of speakers. A feature that is silent in a voice has a rate of 0 there, and no strength.

# %% tags=["show-code"]
clips = cache.need(pipeline.clips(run, seed))
codes = cache.make(feature_index.codes(run, seed, run.focus))
heard = pipeline.table(run, clips)
said = cache.make(speakers.of_features(run, seed, run.focus))
casts = {each: speakers.cast(said, heard, each) for each in speakers.MEASURES}  # (speaker, feature)
rates, labels = casts["rate"], list(casts["rate"].labels)
binary = [name for name in labels if speakers.answerable(rates, name)]  # enough speakers
wide = [name for name in labels if rates.labels[name].replace("", np.nan).nunique() > 2]

# %% tags=["hide-input"]
each = f"{rates.clips.min()} to {rates.clips.max()}" if len(rates.clips) else "no"
display.say(
    f"{said.facts['clips']:,} clips with {said.facts['frames']:,} frames of speech at {run.focus}; "
    f"{len(rates.means)} speakers, {each} clips each; {rates.nameless} clips name no speaker and are left out."
)
display.say(sae_comparison.seed_note(run, seed, run.focus))
report = speakers.labels_asked(said, heard)
display.table(report, caption="Labels of speakers: which are asked about on this page, in how many groups and speakers, and what is left out and why.")  # fmt: skip
if rates.corpus is not None:
    display.say(
        f"Speakers come from {len(set(rates.corpus))} corpora. The corpus is held fixed in every comparison below: "
        "labels change places within it, d is the mean of differences within it, and probes are scored within it."
    )
parts = [speakers.sampled(run, seed, said, heard, name).assign(label=name) for name in labels or [""]]
balance = pd.concat(parts)[["label", *parts[0].columns[:-1]]]
shown = balance[(balance.group != "") & (balance.speakers > 1)]  # the CSV has all
shown = shown.sort_values("speakers", ascending=False, kind="stable")
if len(shown):
    display.table(
        shown.groupby("label", sort=False).head(12),
        caption="Who counts. Clips and speakers that the corpora have, clips kept and dropped, speakers kept, and "
        "the fewest and most clips of one. The profile's balance and clips_per_speaker make them even.",
    )

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
    measure: speaker_effects.two(cast, label, seed=seed)
    for measure, cast in casts.items()
    if label and speakers.asked(cast, label).any()
}
top = found["rate"].table if found else pd.DataFrame({"feature": [], "d": []})

# %% tags=["figure"]
if found:
    lines = {measure.replace("_", " "): one.chance.d for measure, one in found.items()}
    bands = {measure.replace("_", " "): one.chance.threshold for measure, one in found.items()}
    fig = speaker_plots.ordered(lines, bands)
    fig.axes[0].set(title=f"{label}: all features in order")
    display.show(fig, alt="; ".join(f"{name}: greatest |d| {np.nanmax(np.abs(lines[name])):.2f}, chance {bands[name]:.2f}" for name in lines),
                 caption="|d| of each feature. Dotted: what the greatest of them exceeds in 5 % of deals of the labels; dots are beyond it.")  # fmt: skip

# %% tags=["hide-input"]
counts = pd.DataFrame([speaker_effects.counted(one, label, measure) for measure, one in found.items()])
if found:
    display.table(counts.drop(columns="label", errors="ignore"), caption="Found at a false discovery rate of 5 %; beyond the threshold, where any error at all has a chance of 5 %; "
              "with an uncorrected p of at most 0.05, and how many have it when labels are dealt: mean and 95 %. n: speakers.")  # fmt: skip
else:
    display.say("No label has two groups of six speakers that can be compared, so no effect is asked for below.")

# %% [markdown]
# The column that matters is the last: so many features have p of 0.05 when the labels mean nothing. Without it, the number beside
# it looks like a discovery. Here are the foremost with their intervals, which at six to sixty speakers a group
# hold the truth 93 to 97 times of 100 for most kinds of features; but those of the *foremost* lie too far out, for that is why they were chosen.

# %% tags=["figure"]
if found:
    chance = found["rate"].chance
    fig = speaker_plots.forest(top, chance.groups, chance.threshold)
    fig.axes[0].set(title=f"{label}: the foremost features, by rate")
    display.show(fig, alt="; ".join(f"{row.feature}: {row.d:.2f} ({display.between(row.low, row.high, '.2f')})" for row in top.head(5).itertuples()),
                 caption="d with its 95 % interval over speakers. Grey: what chance gives to the greatest; filled marks lie beyond.")  # fmt: skip

# %% [markdown]
# What is left of such a choice on other speakers? Twenty times the speakers are split into halves, evenly within groups.
# One half chooses the features of greatest |d|, the other half measures them, and then they change places. This mean is
# 0 where groups do not differ. It errs low where half of the speakers are too few to choose the right feature.

# %% tags=["hide-input"]
foremost = pd.DataFrame()
for name in binary:
    try:
        rows = speaker_effects.foremost(rates, name, seed=seed)
    except ValueError as refused:
        display.say(f"Not asked on other speakers: {refused}.")
        continue
    foremost = pd.concat([foremost, rows.assign(label=name)], ignore_index=True)
if len(foremost):
    shown = foremost.rename(columns={"group": "more in", "other": "d on other speakers"})
    columns = ["label", "feature", "more in", "d", "d on other speakers", "low", "high", "again"]
    display.table(
        shown[columns],
        caption="The three features of greatest |d| by rate. d: over all speakers, too great for having been chosen. "
        "d on other speakers: of the feature of that rank in one half, measured in the other half, in the direction "
        f"in which it was chosen; mean over {2 * speaker_effects.SPLITS} halves, with the range of 95 % of them. "
        "again: the share of halves in which this feature is among the three.",
    )

# %% [markdown]
# ## Hear it
#
# A number says that a feature differs, and not what it hears. Below, one voice of each group says it equally strongly, a second of
# sound around its peak. If they have a vowel in common and not a timbre, then the feature is of a sound that one group makes more often.

# %% tags=["show-code"]
if found:
    shelf = feature_index.examples_in(run, seed, run.focus)
    for row in top.head(min(4, max(1, chance.beyond.sum()))).itertuples():
        pairs = speakers.alike(shelf, heard, row.feature, label, chance.groups, 1)
        display.voices(feature_index.sounds(heard, pairs), feature_index.RATE, caption=f"Feature {row.feature}, d = {row.d:.2f} ({display.between(row.low, row.high, '.2f')}): {' and '.join(chance.groups)} at equal activation.")  # fmt: skip

# %% [markdown]
# Where two labels are crossed, d is asked **within** the groups of the other, and labels change places only there: what accents do to a
# feature is then neither taken for gender nor counted as noise. An **interaction** says that the difference is not the same everywhere.
# Within one accent alone there may be too few voices for an interval, and then none is given.

# %% tags=["hide-input"]
across = next((name for name in wide if label and speakers.crossed(rates, label, name)), "")
if across:
    inside = speaker_effects.two(rates, label, across, seed)
    crossed = speaker_effects.crossings(rates, label, across, int(inside.table.feature[0]), seed)
    display.table(crossed.drop(columns="why"), caption=f"Feature {inside.table.feature[0]}: d of {label} within each {across}, with its interval where there are {intervals.LEAST} of each.")  # fmt: skip
    said_of = speaker_effects.counted(inside, label, "rate")
    display.say(
        f"Within {across}, {said_of['found']} of {said_of['tested']} features are found and {said_of['beyond']} lie beyond |d| = {said_of['threshold']:.2f}; the foremost has d = {inside.table.d[0]:.2f} "
        f"({display.between(inside.table.low[0], inside.table.high[0], '.2f')}). An interaction has p ≤ 0.05 in {(inside.table.interaction <= 0.05).sum()}; by chance in {0.05 * len(inside.table):.0f}. {'Refused: ' + crossed.why[crossed.why != ''].iloc[0] + '.' if (crossed.why != '').any() else ''}"
    )

# %% [markdown]
# ## More than two groups
#
# Of accents, **η²** is the share of the variance of speakers that lies between groups. Many groups of few speakers have much of it by
# chance; **ω²** is what is left without that. Labels are dealt within gender, where the two are crossed. Groups of fewer than six are left out.

# %% tags=["hide-input"]
wide = [name for name in wide if (rates.labels[name].replace("", np.nan).value_counts() >= intervals.LEAST).sum() > 1]
strata = label if wide and label and speakers.crossed(rates, wide[0], label) else ""
many = None
try:
    many = speaker_effects.many(rates, wide[0], strata, seed) if wide else None
except ValueError as refused:
    display.say(f"No comparison of {wide[0]}: {refused}.")
if many:
    every = speaker_effects.counted(many, wide[0], "rate")
    best = many.table.head(6).rename(columns={"eta_squared": "η²", "omega_squared": "ω²", "f": "F"})
    display.table(best[["feature", "η²", "low", "high", "ω²", "F", "n", "q"]], caption=f"The features that {wide[0]} tells most of, with the 95 % interval of η².")  # fmt: skip
    display.say(
        f"Of {every['tested']:,} features {every['found']} are found at 5 %, and {every['beyond']} have an η² above {every['threshold']:.2f}, which chance exceeds in one deal of twenty. "
        f"p is at most 0.05 in {every['p ≤ 0.05']}; by chance in {every['by chance']}. {'Too few speakers: ' + ', '.join(many.few) + '.' if many.few else ''}"
    )

# %% tags=["figure"]
if many:
    first = int(many.table.feature[0])
    apart = speaker_effects.pairs(rates, wide[0], first, seed)
    names, d = speaker_effects.matrix(apart)
    display.show(speaker_plots.apart(names, d, first),
                 alt=f"d between groups lies between {np.nanmin(d):.1f} and {np.nanmax(d):.1f}.",
                 caption=f"d between any two groups in the feature that {wide[0]} tells most of; being the foremost, it lies too far out.")  # fmt: skip
    for row in apart[apart.why != ""].head(3).itertuples():
        display.say(f"{row.one} and {row.other} are not compared: {row.why}.")
    apart = apart[apart.why == ""]
    apart["d (95 %)"] = [
        f"{row.d:.1f} ({row.low:.1f} to {row.high:.1f})".replace("nan (nan to nan)", "–") for row in apart.itertuples()
    ]
    apart["n"] = [f"{row.n_one} + {row.n_other}" for row in apart.itertuples()]
    columns = ["one", "other", "n", "found", "beyond", "threshold", "visible", "d (95 %)"]
    display.table(
        apart[columns].head(8),
        caption="Any two groups, those with most found: speakers; features significant at an FDR of 5 % over all "
        "pairs together (found), and at a family-wise error of 5 % over all pairs (beyond; Holm); the |d| that "
        "permuted labels exceed in 5 % within the pair; the d that has 80 % power; "
        f"and d of feature {first}.",
    )

# %% [markdown]
# ## Is it the label, or what goes along with it?
#
# Of the demo we know the truth. Its `mic` is nothing but spectral tilt: a far microphone is duller. Whatever it shows has to vanish when tilt is
# held fixed, by taking out of features *and* grouping what a straight line through it tells; what is left of the features changes places among speakers
# (Freedman and Lane). Or speakers are **matched**: in pairs of one of each group who are alike, members change places. The other way round:
# pitch is a part of what makes a voice a woman's, so with pitch held fixed little of gender is *left*, and hardly anything can be said.

# %% tags=["show-code"]
told = speakers.covariates(said, heard)
known = ("duration", "level", "rms", "f0", "tilt")
wanted = [name for name in told if any(one in name for one in known)][:4]
held = speaker_effects.held(rates, [*binary, *wide[:1]], told[wanted], seed, deals=10_000)

# %% tags=["hide-input"]
if len(held):
    shown = held[(held.way != "matching") | held.own.ge(0.5)]
    shown = shown.assign(own=["–" if np.isnan(own) else f"{own:.2f}" for own in shown.own])
    display.table(
        shown.drop(columns=["why", "tested"]).rename(columns={"own": "its own d"}),
        caption="What is found with one number held fixed. Its own d between groups; speakers; the share of the grouping that it does not tell; features found at 5 %, "
        "beyond the threshold, with p ≤ 0.05, and by chance. Matched pairs where the number differs by half an SD.",
    )
for row in held[held.why != ""].drop_duplicates("why").itertuples():
    display.say(f"{row.label}, {row.held}, {row.way}: “{row.why}”.")

# %% [markdown]
# ## Do these methods keep their promises here?
#
# **Nothing there**: the voices of a label that means nothing change places two hundred times, and each time everything is asked again. **Something there**:
# let the voices of this corpus be all the people there are. Then what is measured on all of them is the true d of each feature, exactly, and as many voices
# drawn from them with replacement are a corpus on which intervals can be tried. Last, what the demo's voices were made with: a near microphone takes 0 to 2.6 dB
# an octave and a far one 3.8 to 6.4, a tract's length is drawn evenly in each gender, and so d is known by arithmetic.
#
# Where intervals of d fail is known, too (`benchmarks/README.md`): of made-up features that are zero in most clips and far out in some, a shift of
# everybody by an SD or more is held in 83 to 93 of 100 cases, for so few voices cannot tell that SD. AUC needs none and is held there in 93 to 95.

# %% tags=["show-code"]
null = next((name for name in binary if "null" in name), "")
planted = [name for name in (label, *wide[:1]) if name]
tried = cache.make(calibration_study.tried(run, seed, run.focus, null, planted))
covered = tried.table("covered.csv") if tried.facts["pairs"] else pd.DataFrame()

# %% tags=["hide-input"]
made = pd.DataFrame()
if null:
    nothing = tried.table("nothing.csv")
    display.say(
        f"{null}: in {(nothing.found == 0).mean():.1%} of {len(nothing)} relabelings nothing is found at a false discovery rate of 5 %, and in {(nothing.beyond == 0).mean():.1%} nothing is beyond the threshold."
    )
if len(covered):
    sums = covered.groupby(["label", "one", "other"], sort=False)[["drawn", "inside", "right", "wrong"]].sum()
    sums = sums.assign(
        features=covered.groupby(["label", "one", "other"]).size(), share=sums.inside / sums.drawn
    ).reset_index()
    display.table(
        sums[["label", "one", "other", "features", "drawn", "share", "right", "wrong"]],
        caption="Intervals of 95 % in drawn corpora: the share that holds the true d, and how many "
        "exclude 0 on the right side and on the wrong one.",
    )
if run.name == "demo":
    genders, given = ("female", "male"), [("tilt_db", "mic", ("far", "near"), 3.8 / np.sqrt(2.6**2 / 12))]
    given += [("tract", "gender", genders, 50.5 / np.sqrt((59**2 + 60**2 - 2) / 24))]
    given += [(number, one, groups, 0.0) for number, one, groups in (("tilt_db", "gender", genders), ("level_db", "gender", genders), ("rate_wpm", "gender", genders), ("tract", "null_label", ("a", "b")), ("tilt_db", "null_label", ("a", "b")))]  # fmt: skip
    made = calibration_study.planted(told, rates.labels, given, seed)
    display.table(made, caption="What the voices were made with: d as it is measured, its interval, and the truth.")

# %% [markdown]
# ## What could have been seen?
#
# "Not found" is no "not there". **Power** is the probability that a true difference is seen. It falls with the number of features, since the bar is
# higher; it grows with speakers, and hardly with clips: the tenth clip of a voice tells less than the first, the less the more alike clips of a
# voice are (**ICC**). The mark is the least d that is seen in four of five corpora like this one.

# %% tags=["figure"]
if found:
    seen = speaker_effects.seen(found["rate"])
    fig = speaker_plots.powers(seen.curves, seen.least)
    fig.axes[0].set(title="What can be seen with so many speakers")
    display.show(fig, alt="; ".join(f"{name}: d {d:.2f}" for name, d in seen.least.items()),
                 caption="Probability that a true d is seen, and the d that is seen in 80 %. Speakers of each group; corrected for the number of features.")  # fmt: skip

# %% tags=["hide-input"]
needed, too_few = pd.DataFrame(), "nothing was refused"
if found:
    icc = speakers.likeness(said, heard, top.feature)
    needed = speaker_effects.sample_sizes(seen, icc)
    measured = f"is {icc:.3f}" if np.isfinite(icc) else "is not known: too few speakers have two clips"
    display.table(
        needed,
        caption="Speakers a group who are needed to see a difference, in SDs of clips, in four of five "
        f"corpora, after correction. The median ICC here {measured}.",
    )
    few = np.flatnonzero(rates.labels[label] == chance.groups[0])[5:]  # leaves five
    try:
        intervals.of_d(np.delete(rates.means, few, 0), rates.labels[label].drop(rates.labels.index[few]), chance.groups)
    except ValueError as refusal:
        too_few = str(refusal)
    display.say(f"Asked with five speakers of one group, we refuse: “{too_few}”.")

# %% [markdown]
# ## All features together
#
# What no feature tells by itself many may tell together. A **probe** weighs inputs and is asked about speakers it never met.
# **Balanced accuracy** is the mean over groups of the share read right, so always saying the majority scores no better than chance.
# With several corpora that is the mean within corpora, so knowing the corpus is worth nothing. Every probe gets the best of three
# strengths of regularisation, chosen on speakers who are neither fitted nor scored.
# Whatever the features give must be compared with what the frames that they re-say, sound itself, and a dictionary of random directions give.

# %%
labelled = {"gender": ["accent"], "accent": ["gender"], "mic": ["gender", "accent"], "null_label": ["gender", "accent"]}
stored = heard.loc[said.table("clips.csv")["clip"]]
asked, refused = sanity_checks.askable(stored, labelled)
for of in ("random dictionary", "principal directions"):
    (
        cache.make(feature_index.codes(run, seed, run.focus, of)),
        cache.make(speakers.of_features(run, seed, run.focus, of)),
    )
simple = cache.make(sanity_checks.label_probe(run, seed, asked))
probed = cache.make(speaker_probes.probed(run, seed, run.focus, asked))
read = speaker_probes.everything(probed, simple, run.focus)
scores = speaker_probes.compared(read, ["label", "input", "width"])

# %% tags=["hide-input"]
widest = scores.loc[scores.groupby(["label", "input"], sort=False).width.idxmax()]
if len(scores):
    display.table(
        speaker_probes.side_by_side(widest),
        caption=f"Balanced accuracy in % on clips of speakers that the probe never met, with its 95 % interval over {read.speaker.nunique()} speakers. Labels that mean nothing, and the majority, are its null.",
    )
for name, why in refused.items():
    display.say(f"No probe of {name}: {why}.")
if label in asked:
    ranked = widest[widest.label == label].sort_values("balanced", ascending=False)
    better = speaker_probes.better(read, label, "random dictionary", "all features")
    display.say(
        f"Read off {ranked.speakers.max()} speakers unheard, {label} is right in "
        + ", ".join(f"{row.balanced:.0%} from {row.input}" for row in ranked.itertuples())
        + f". Random directions less the dictionary, speaker by speaker: {better[0]:+.1%} ({display.between(better[1], better[2], '+.1%')})."
    )

# %% [markdown]
# How few of them would do? The best k are chosen on the training speakers alone, anew in each fold. A line that rises at once
# is a dictionary that has a feature for the label; one that rises slowly has it spread over many.

# %% tags=["figure"]
if label in asked:
    some = scores[(scores.label == label) & scores.input.isin(["all features", "random dictionary"])].sort_values(
        ["input", "width"]
    )
    fig = speaker_plots.sparse(some, 1 / read[read.label == label].told.nunique())
    fig.axes[0].set(title=f"{label}, from the best k features")
    display.show(fig, alt="; ".join(f"{row.input}, {row.width}: {row.balanced:.2f}" for row in some.itertuples()),
                 caption="Bars are 95 % intervals over speakers.")  # fmt: skip

# %% [markdown]
# ## The same data, asked as it should not be
#
# A random forest is asked for gender from single frames, as the system before this one did, with frames split at random, and then of speakers it never
# met; last, split by frame again, for a gender dealt by lot, of which nothing can be known. What it scores there is what knowing the voices is worth.

# %% tags=["hide-input"]
grown = cache.make(clip_clusters.forests(run, seed, run.focus))
forest = pd.DataFrame() if grown.facts["why"] else grown.table("read.csv")
if len(forest):
    display.table(forest, caption="Balanced accuracy of one forest, with its 95 % interval over speakers.")
else:
    display.say(f"No forest: {grown.facts['why']}.")

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
# Means are those of clips; what the microphone shows is gone when tilt is held fixed, and gender and accent stay; true effects lie in their intervals; labels by lot find nothing.

# %% tags=["checks"]
one = int(np.nanargmax(rates.means.std(axis=0))) if len(rates.means) else 0
by_hand = (
    pd.Series(speakers.values(said, "rate")[:, one])
    .groupby(heard.speaker[said.table("clips.csv")["clip"]].to_numpy())
    .mean()
    .drop("", errors="ignore")
)
assert np.allclose(by_hand.sort_index(), rates.means[:, one]) and ((rates.means >= 0) & (rates.means <= 1)).all()
for each in found.values():
    assert each.table.auc.between(0, 1).all() and (each.table.q >= each.table.p - 1e-12).all()
    assert (each.table.g.abs() <= each.table.d.abs() + 1e-12).all()

# %% tags=["checks"]
calibrated, confounded, cause = Calibrations(), "mic", "tilt_db"
if run.name == "demo":
    after = held[held.way != "matching"].set_index(["label", "held"]).found.astype(float)
    least = {"gender": 0.2, "mic": 0.2, "accent": 0.1}
    by_input = widest.set_index(["input", "label"])
    frames, features = by_input.loc["activations"], by_input.loc["all features"]
    calibrated.at_least(f"features that differ by {confounded}", after[confounded, "nothing"], 10)
    share = after[confounded, cause] / max(1.0, after[confounded, "nothing"])
    calibrated.at_most(f"share of these left with {cause} held fixed", share, 0.1)
    for name, floor in least.items():
        above = frames.balanced[name] - frames.chance[name]
        calibrated.at_least(f"{name} from activations: balanced accuracy above chance", above, floor)
    away = abs(features.balanced["null_label"] - 0.5)
    calibrated.at_most("null label from all features: balanced accuracy away from chance", away, 0.15)
    calibrated.share_at_least("permuted null labels: nothing significant by FDR", nothing.found == 0, 0.95)
    calibrated.share_at_least("permuted null labels: nothing above the max-|d| threshold", nothing.beyond == 0, 0.95)
    calibrated.at_least("95 % intervals of d that hold the truth", covered.inside.sum() / covered.drawn.sum(), 0.9)
    calibrated.at_most(
        "intervals that exclude 0 on the wrong side, a share", covered.wrong.sum() / covered.right.sum(), 0.1
    )
    n = len(told)  # d's standard error: Hedges and Olkin 1985, chapter 5
    errors = np.sqrt(4 / n + made.true**2 / (2 * (n - 2)))
    away = (abs(made.d - made.true) / errors).max()
    calibrated.at_most("d of what the voices were made with: from the truth, in its standard errors", away, 4)
calibrated.show()

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
    news = f"Of {len(top):,} features {int(chance.found.sum())} tell {chance.groups[0]} from {chance.groups[1]} ({len(rates.means)} speakers); with p ≤ 0.05 are {chance.nominal}, by chance {chance.by_chance.mean():.0f}"
news += f"; of {wide[0]} {int(many.chance.found.sum())} tell something" if many else ""
tables = {"balance": balance, "counts": counts, "gender": top, "held": held, "needed": needed, "probes": scores}
tables |= {"foremost": foremost, "forest": forest, "trials": covered, "made": made, "calibrations": calibrated.table}
tables |= {"groups": many.table, "pairs": apart} if many else {}
tables |= {"within": inside.table, "crossed": crossed} if across else {}
steps = [clips, codes, said, tried, simple, probed, grown]
results.save("04_voices", run.name, headline=f"{news}.", tables=tables, steps=steps)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# In the demo few features, if any, differ between women and men by more than chance gives the greatest of all, and the
# foremost of them shrink on speakers that did not choose them. More differ between accents,
# which are differences of sounds. The rest of what has p ≤ 0.05 is about what labels by lot give. What microphones show
# is gone when tilt is held fixed. Log-mel and the layer's frames tell a voice far better than the dictionary, which has no
# feature for gender: it is spread over many, and random directions keep as much of it or more.
#
# Dropped: tests of frames and of clips, which find something where nothing is; percentile intervals, which are too
# short for so few speakers; holding all covariates fixed at once, which leaves nothing of gender to compare; matching
# on tilt, for no far microphone is as bright as a near one, and holding it fixed has to trust a straight line; a
# microphone that is only softer, which Whisper's log-mel hides: 0 or 1 features, by the processor.
#
# Back: [3 · Do clips lie in clumps, and what are the clumps of?](03_clusters.ipynb)
#
# Next: [6 · What does a feature mean?](06_meaning.ipynb)
