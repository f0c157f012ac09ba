# %% [markdown]
# # 6 · What does a feature mean?
#
# > A feature means a phone when it finds that phone in voices it was not chosen on, better than neurons do and far
# > better than a shifted alignment; then one can also hear it, at every strength, and not only where it is loudest.
#
# **You will** ask each feature which phone, class, word or letter it goes with, when in the phone it fires, and hear it.
#
# **You will learn** to choose on some speakers and score on others, to set a thousand tests against chance, and to
# ask of neurons and random directions whatever you ask of your own features.
#
# **You need** the results of notebooks 0 to 2. Where a corpus has no times of phones, this page asks its transcripts alone.
#
# **Time** demo 1.5 min on 2 cores · two hours of speech through `tiny` 4 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
from dataclasses import replace

import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.experiments import (
    correlates_of_features,
    dashboards,
    feature_index,
    phone_selectivity,
    phone_tables,
    pipeline,
    sae_comparison,
    transcript_words,
)
from whisper_sae.report import results
from whisper_sae.viz import display, feature_plots
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## All that a feature does
#
# An **index** keeps every firing of every feature of a site, by feature: what it says anywhere, where it is loudest,
# what a clip is full of, all without the model. The same is made of what a dictionary has to be compared with, and
# whatever this page asks, it asks of all of them, through the same code:
#
# - the **neurons** of the site, and those in the middle of the layer's MLP, each with two sides, above its mean and below;
# - the **principal directions**, with two sides, too;
# - a **random dictionary**, never trained, with as many latents, of which as many fire;
# - the dictionary of the **untrained twin**: another model of the same build, whose weights are random. What that says is easily
#   said again, so its dictionary sees no more frames than one of a sweep.

# %%
clips, acts = cache.need(pipeline.clips(run, seed)), cache.need(pipeline.activations(run, seed))
heard = pipeline.table(run, clips)
told = phone_tables.phones_of(run, heard)  # a row a phone; empty where no corpus has any
why_no_phones = phone_selectivity.unaskable(run, heard, acts, seed)  # "" where phones can be asked about
told = told.head(0) if why_no_phones else told
site, twin = run.focus, replace(pipeline.twin(run), tokens=run.sweep_tokens or run.tokens)
middle = f"{site.rsplit('.', 1)[0]}.mlp_hidden"
mlp = pipeline.at(run, middle)

# %% tags=["show-code"]
rivals = {
    "dictionary": (run, site, "dictionary"),
    "MLP neurons": (mlp, middle, "neurons"),
    "neurons": (run, site, "neurons"),
    "principal directions": (run, site, "principal directions"),
    "random dictionary": (run, site, "random dictionary"),
    "untrained twin's dictionary": (twin, site, "dictionary"),
}
cache.make(pipeline.activations(mlp, seed)), cache.make(pipeline.activations(twin, seed))
learnt = [
    cache.need(sae_comparison.dictionary(run, seed, site)),
    cache.make(sae_comparison.dictionary(twin, seed, site)),
]
built = {name: cache.make(feature_index.codes(whose, seed, at, of)) for name, (whose, at, of) in rivals.items()}
found = feature_index.index_of(run, seed, site)

# %% tags=["hide-input"]
alive = found.rates > 0
display.say(
    f"{found.rows:,} frames of {len(found.starts) - 1:,} windows at {site}; {alive.sum():,} of {found.features:,} features "
    f"ever fire, {built['dictionary'].facts['firings']:,} times in all. The dictionary leaves {learnt[0].facts['fvu']:.3f} of the variance "
    f"unexplained, the twin's {learnt[1].facts['fvu']:.3f} of its own."
)
display.say(sae_comparison.seed_note(run, seed, run.focus))

# %% [markdown]
# ## Who finds the phones?
#
# For each phone the best detector is looked for: the feature, and the threshold, with the highest **F1**, the harmonic
# mean of precision and recall. Both are chosen on the training speakers (of few, on half of all), and scored on the others, so who has
# more features gains nothing by having more to choose from. Sentences are held out as well, as far as speakers suffice. Frames
# centred within 10 ms of an edge between two phones count for neither, and pauses do not count; the same detectors are then scored
# once more on *all* frames of the same clips, where false alarms in pauses and at edges cost. Saying a phone always has an F1 as
# well: chance. Intervals are over speakers; of fewer than six none is given.

# %% tags=["show-code"]
steps = {}
for name, (whose, at, of) in rivals.items() if len(told) else ():
    steps[name] = cache.make(phone_selectivity.detection(whose, seed, at, of))
compared = phone_selectivity.compared(steps) if steps else pd.DataFrame()

# %% tags=["figure"]
if len(told):
    by_chance = steps["dictionary"].facts["chance"]
    fig = feature_plots.ranking(compared, "name", "f1", "low", "high", by_chance)
    fig.axes[0].set(title="How well the best features find a phone", xlabel="F1 of the best detector, mean over phones")
    display.show(
        fig,
        alt="; ".join(f"{name} {f1:.2f}" for name, f1 in zip(compared.name, compared.f1, strict=True))
        + f"; chance {by_chance:.2f}.",
        caption=f"{steps['dictionary'].facts['labels']} phones, each with 25 frames or more on both sides. Scored on "
        f"{steps['dictionary'].facts['apart']} on which nothing was chosen; bars are 95 % intervals over speakers.",
    )

# %% tags=["hide-input"]
if len(told):
    columns = {"name": "features", "f1": "F1", "low": "from", "high": "to", "less": "less by"}
    columns |= {"at_least": "at least", "at_most": "at most", "f1_all": "F1, all frames"}
    display.table(
        compared[list(columns)].rename(columns=columns),
        caption="F1 with its 95 % interval over speakers; how much less that is than the "
        "dictionary's, with its interval over the same draws of speakers: where it begins above 0, "
        "the dictionary is better. Last: F1 with pauses and edges.",
    )
    better, worse = compared.at_least > 0, compared.at_most < 0
    equal = ~better & ~worse & compared.at_least.notna() & (compared.index > 0)
    named = {"better": better, "worse": worse, "not clearly better or worse": equal}
    said = [f"{how} than {', '.join(compared.name[which])}" for how, which in named.items() if which.any()]
    voices = steps["dictionary"].facts["speakers"]
    order = (
        f"The dictionary finds phones {'; '.join(said)}." if said else "These are too few for any order to be shown."
    )
    texts = steps["dictionary"].facts["texts"]
    display.say(
        f"Scored on {voices} speakers ({steps['dictionary'].facts['apart']} on which nothing was chosen). {order} "
        f"Of {texts['scored']} scored clips {texts['shared']} say a sentence that was chosen on; "
        f"{texts['left_out']} clips were left out so that no more do."
    )
display.say(why_no_phones or f"Asked: {len(told):,} phones of {told['clip'].nunique():,} clips.")

# %% [markdown]
# ## Every feature, and what chance would say
#
# Now each feature by itself: **lift**, how many times as often it fires on the phone as overall; **AUC**, how surely
# a frame of the phone is above another; **information**, the bits that firing tells; **purity**, the share of the phone
# among its loudest frames, one a clip; F1 on speakers it was not chosen on. The **stage** is the third of the phone in which
# it says most, where one stands out, and the **lag** is from the middle of the phone to its peak.
#
# With thousands of pairs of a feature and a phone, some agree by accident. Two nulls say how many:
#
# - **Shifts.** The alignment of every clip is turned by a random amount, a hundred times. That keeps how long phones last and how
#   often they are said, and only takes away the *when*.
# - **Swaps.** Clips of about the same length swap their alignments, fifty times. That keeps the *when*, counted from the beginning
#   of the window. Whisper knows positions, and where many speakers read one sentence, a feature of the time alone goes with the
#   phones that are said then: beyond shifts, but not beyond swaps.
#
# A pair of a feature and a phone counts as found only beyond both, at a false discovery rate of 5 %.

# %% tags=["show-code"]
columns = ["feature", "label", "found", "f1", "z", "chance", "stage"]
features, answers = pd.DataFrame(columns=columns), None
if len(told):
    answers = cache.make(phone_selectivity.answers(run, seed, site))
    features = phone_selectivity.read(answers, "features.csv")
best = features[features.found.astype(bool)].sort_values("f1", ascending=False)

# %% tags=["hide-input"]
if len(told):
    shown = best[["feature", "label", "f1", "chance", "lift", "auc", "information", "purity", "stage"]]
    shown = shown.assign(lag=1000 * best.lag).head(15).reset_index(drop=True)
    shown.columns = ["feature", "phone", "F1", "chance", "lift", "AUC", "bits", "purity", "stage", "lag, ms"]
    display.table(shown, caption="The best by F1, on speakers on whom nothing was chosen; all are in the CSV.")
    facts, shifted = answers.facts, answers.facts["shifted"]
    rows = [("shifts", facts["by_shifts"]), ("swaps", facts["by_swaps"]), ("both", facts["found"])]
    rows.append((f"shifts, in an alignment that was shifted (mean of {len(shifted)})", np.mean(shifted)))
    display.table(
        pd.DataFrame(rows, columns=["beyond", "pairs"]),
        caption=f"Of {facts['tested']:,} pairs of a feature and a phone in {facts['windows']:,} windows.",
    )
display.say(why_no_phones or f"{best.label.nunique()} phones are the best label of a found feature.")

# %% [markdown]
# ## Hear one
#
# A feature's loudest clips flatter it. So listen down its whole range: the loudest, then a clip of each few tenths of those in which it fires,
# at its peak there. If the phone is still there in the weak ones, the feature means it; if something else begins to creep
# in, it means something wider. Each player holds a second around the peak.

# %%
surest = best.sort_values("z", ascending=False)
number = int(surest.feature.iloc[0]) if len(best) else int(found.rates.argmax())
shelf = feature_index.examples_in(run, seed, site)
chosen = pd.concat([shelf.loudest(number, 2), shelf.deciles(number)], ignore_index=True)
chosen = chosen[chosen.kind.isin(["loudest", "decile 8", "decile 6", "decile 4", "decile 2"])]

# %% tags=["hide-input"]
said = f"/{surest.label.iloc[0]}/" if len(best) else "the most frequent"
display.voices(
    feature_index.sounds(heard, chosen),
    feature_index.RATE,
    caption=f"Feature {number}, {said}: from its loudest clips down.",
)

# %% [markdown]
# ## One thing, or several?
#
# All values of one unit, by phone: the plot by which Mozilla's builders of FREUD showed that single neurons of Whisper stand for many
# sounds. On top, the MLP neuron and the feature that find a phone best. Below, one of each drawn by lot, for the best flatter
# their kind. A unit that means one thing has one row apart from all others; a unit with several such rows means several, or none.

# %%
units, any_neuron = {}, 0
if len(told) and compared.f1.notna().all():
    mine, theirs = (
        phone_selectivity.read(steps[name], "labels.csv").set_index("label") for name in ("dictionary", "MLP neurons")
    )
    width, lot = built["MLP neurons"].facts["features"], np.random.default_rng(seed)
    phone = theirs.f1.idxmax()
    best_neuron, any_neuron = int(theirs.feature[phone]) % width, int(lot.integers(width))  # of two sides
    best_feature, any_feature = int(mine.feature[phone]), int(lot.choice(np.flatnonzero(alive)))
    for title, name, unit in (
        (f"neuron {best_neuron}, best for /{phone}/", "MLP neurons", best_neuron),
        (f"feature {best_feature}, best for /{phone}/", "dictionary", best_feature),
        (f"neuron {any_neuron}, by lot", "MLP neurons", any_neuron),
        (f"feature {any_feature}, by lot", "dictionary", any_feature),
    ):
        units[title] = phone_selectivity.by_phone(rivals[name][0], seed, *rivals[name][1:], unit)

# %% tags=["figure"]
if units:
    tops = {title: unit.table[unit.table.side == "all"].label[:4] for title, unit in units.items()}
    display.show(
        feature_plots.answers_by_label(units),
        alt="The phones on which each is highest: "
        + "; ".join(f"{name}: {', '.join(top)}" for name, top in tops.items()),
        caption="Darker: a larger share of the phone's frames, on a logarithmic scale. Dots: means of the speakers' means "
        "with their 95 % interval; the twelve highest phones. A neuron's values are less its mean.",
    )
    table = units[f"neuron {any_neuron}, by lot"].table.dropna()
    sides = pd.concat([table[table.side == side].head(5) for side in ("positive", "negative")])
    display.table(
        sides[["side", "label", "n", "units", "mean", "low", "high"]].reset_index(drop=True),
        caption=f"Neuron {any_neuron}, drawn by lot, has two sides: the five phones on which it is farthest above its mean and "
        "farthest below. n: frames; units: speakers.",
    )

# %% [markdown]
# ## How sounds are made
#
# Phones that are made alike may share a feature: all nasals, all that is voiced. So the same question is asked of classes:
# manner, place, voicing, the height of vowels. With few and broad classes a single threshold has less to win, and baselines come
# closer.

# %%
classes, wanted = {}, ["manner", "place", "voicing", "height"] if len(told) else []
askable, refused = phone_selectivity.askable(run, heard, acts, wanted, seed)
for column in askable:
    for name in ("dictionary", "MLP neurons"):
        whose, at, of = rivals[name]
        classes.setdefault(column, {})[name] = cache.make(phone_selectivity.detection(whose, seed, at, of, column))

# %% tags=["hide-input"]
if classes:
    pairs = {column: phone_selectivity.compared(pair) for column, pair in classes.items()}
    names = ["asked", "dictionary", "MLP neurons", "less by", "from", "to"]
    rows = [(column, pair.f1[0], *pair.loc[1, ["f1", "less", "at_least", "at_most"]]) for column, pair in pairs.items()]
    by_class = pd.DataFrame(rows, columns=names)
    display.table(
        by_class, caption="Mean F1 over classes on speakers on whom nothing was chosen; 95 % intervals over speakers."
    )
    behind = ", ".join(by_class.asked[by_class.to < 0])
    few = "Scored on too few speakers for an interval: no order is shown."
    order = f"Neurons of the MLP are better than the dictionary on: {behind or 'none of them'}."
    display.say(order if by_class["from"].notna().any() else few)
if len(told):
    scored = {"ipa": steps["dictionary"]} | {name: pair["dictionary"] for name, pair in classes.items()}
    display.table(
        phone_selectivity.asked_about(scored, refused),
        caption="What is asked of phones, with how many labels, and what is left out and why.",
    )
display.say(why_no_phones)

# %% [markdown]
# ## Where only a transcript is known
#
# Most corpora tell what was said and not when. Two questions can still be asked. Does a feature reach higher in clips that have the word?
# And is it higher where the word should be, if each letter took as long as any other? Chance is what comes out when texts are
# permuted among clips of about the same length by the same speaker.

# %% tags=["show-code"]
units_of_text = {"letters": "character", "words": "word"}
why_not = {name: transcript_words.unaskable(heard.text, unit) for name, unit in units_of_text.items()}
written = {
    name: cache.make(transcript_words.words(run, seed, site, unit=unit))
    for name, unit in units_of_text.items()
    if not why_not[name]
}
standing_out = {name: transcript_words.tokens_of(step) for name, step in written.items()}
tokens = standing_out.get("words", pd.DataFrame({"features": []}))

# %% tags=["hide-input"]
if written:
    shown = pd.concat([table.head(8) for table in standing_out.values()], ignore_index=True)
    display.table(
        shown[["token", "times", "question", "feature", "score", "z", "q"]],
        caption="The letters and words that stand out most, each with its best feature. Score: AUC "
        "over clips for presence, mean rank there among clips for position; 0.5 is no connection.",
    )
display.say(" ".join(why_not.values()).strip() or f"Asked: {', '.join(written)}.")

# %% [markdown]
# ## Loudness, pitch, or where one is in the clip
#
# A feature that looks like a phone may only be loud, or high, or the beginning of speech. So each is set beside plain measures of the
# sound under the same frames. It wears a **flag** if one measure explains at least a quarter of what it says of speakers by whom
# that was not learnt, and more than in twenty turns of the clips: loudness, pitch, brightness, position, the end of speech, the edge of the padding, a word boundary.

# %%
asked = {"most": 20_000, "shifts": 20}  # frames, of whole clips drawn at random; turns of the clips
acoustic = correlates_of_features.features(run, seed, site, **asked)  # a row a feature
heard_of = cache.need(correlates_of_features.correlates_of(run, seed, site, **asked))
flags = heard_of.table("flags.csv")

# %% tags=["hide-input"]
display.table(flags, caption="How many features wear each flag, and how many where clips were turned.")
shown = acoustic[acoustic.flag != ""].sort_values("explained", ascending=False).head(8).reset_index()
display.table(
    shown[["feature", "flag", "correlation", "low", "high", "explained", "auc"]],
    caption="Those that a measure explains best. Correlation: Spearman over frames, 95 % interval over speakers. Explained: R² on speakers "
    "by whom nothing was learnt. AUC: for flags that are events.",
)
both = best[best.feature.isin(acoustic.index[acoustic.flag != ""])]
display.say(f"Of {len(best):,} features that go with a phone, {len(both):,} wear a flag as well.")

# %% [markdown]
# ## Sounds that are not speech
#
# Whisper hears more than speech. Where a corpus has clips without a speaker in classes, the best feature of a class is chosen on some folds
# and scored on another; a clip counts once.

# %%
by_kind = pd.DataFrame()
if len(correlates_of_features.kinds_of(heard)) > 1:
    by_input, by_kind = correlates_of_features.kinds_of_sounds(run, seed, site)
    columns = ["input", "auc", "low", "high", "by_chance", "p", "clips"]
    display.table(by_input[columns], caption="AUC of the best feature of a class, mean over classes; 95 % interval over clips. By chance: labels dealt anew.")  # fmt: skip
    display.table(by_kind[by_kind.input == "dictionary"].drop(columns="input"), caption="The dictionary's best feature of each class.")  # fmt: skip
else:
    display.say("No corpus of this profile has two classes of sounds without speech.")

# %% [markdown]
# ## How many questions were asked?
#
# Each family of tests keeps its own false discovery rate of 5 %: of what is found in it, one in twenty may be an accident. Nothing
# is corrected over families, so the more of them there are, the more accidents there may be in all. The first one is the question of
# this page; the others are for exploring.

# %% tags=["hide-input"]
rows = []
if answers is not None:
    facts = answers.facts
    rows.append(("phones", facts["tested"], facts["found"], np.mean(facts["shifted"])))
for name, step in written.items():
    for question in transcript_words.ASKS:
        facts = step.facts[question]
        rows.append((f"{name}: {question}", facts["tested"], facts["found"], facts["dealt"]))
rows.append(("flags", *(int(flags[name].sum()) for name in ("asked", "features", "shifted"))))
if len(by_kind):
    mine = by_kind[by_kind.input == "dictionary"]
    rows.append(("classes of sounds", len(mine), int((mine.q <= 0.05).sum()), np.nan))
families = pd.DataFrame(rows, columns=["family", "tests", "found", "found in a null"])
display.table(
    families,
    caption=f"{len(families)} families. Null: shifted alignments, permuted texts, turned clips.",
)

# %% [markdown]
# ## Look for yourself
#
# Scores can be wrong about a feature in ways that an ear notices at once. The gallery is one file with features to sort, to filter and to play, each with its
# examples from loud to weak, its activation drawn over the spectrogram, and the word under its peak. Its labels are drafts made of the scores above,
# until somebody listens and writes a note, which is kept with the data and outlives every report:
# `galleries.notes(run, seed, site).put(labels.Note(30, "phone", "/s/, onset", 0.8))`.

# %% tags=["show-code"]
scores_of = acoustic[["flag"]]
if len(told):
    scores_of = scores_of.join(
        features.set_index("feature")[["label", "f1", "chance", "stage"]].rename(columns={"label": "phone"})
    )
dashboards.page(run, seed, site, scores_of, most=20, each=3, wholes=6)

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That a feature means a phone*: another phone among its weak firings, or a rate that falls when a new speaker is asked.
# *That the dictionary adds something to the neurons*: an interval of the difference that holds 0, and on some classes it does.
# *That what is found is no accident*: discoveries in shifted alignments, or pairs that swapped alignments have as well. *That this is about Whisper*: in the demo, voices are
# synthesised, and their phones are more alike than those of people; no figure of it is a finding about speech. *That a
# feature matters to the model*: nothing here; that needs an experiment on the model, not a table of what goes with what.
# </aside>
#
# ## Checks
#
# A detector planted in the true alignment is found as its phone by every score, and one planted in a shifted alignment is not.

# %% tags=["checks"]
if len(told):
    planted, scores = phone_selectivity.planted(phone_selectivity.asked(run, heard, acts, seed=seed), seed)
    for name in ("lift", "auc", "information", "purity", "f1"):
        assert np.nanargmax(getattr(scores, name)[0]) == planted, name
    assert scores.f1[0, planted] > 0.9 and scores.f1[1, planted] < 0.7 * scores.f1[0, planted]
peak = shelf.loudest(number, 1).iloc[0]
piece, position = (int(value[0]) for value in found.where(np.array([peak.row])))
assert np.isclose(found.trace(number, piece)[position], peak.value) and np.isclose(found.maxima[number], peak.value)

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    f1 = compared.set_index("name").f1
    calibrated.at_least("F1 of the best feature of a phone, mean", f1["dictionary"], 0.3)
    calibrated.at_least("the same less the best neuron's", f1["dictionary"] - f1["neurons"], 0.05)
    calibrated.at_least("the same less a random SAE's", f1["dictionary"] - f1["random dictionary"], 0.1)
    calibrated.at_most("F1 by chance", by_chance, 0.1)
    shifted = np.mean(answers.facts["shifted"]) / max(1, answers.facts["found"])
    calibrated.at_most("pairs found in a shifted alignment, as a share of those found", shifted, 0.05)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(f"{len(rivals)} ways of hearing {site}: {', '.join(rivals)}")
print(f"{len(told):,} phones of {told.ipa.nunique()} kinds; {len(built)} indexes, {found.rows:,} frames each")

# %% tags=["save"]
news = "Nothing could be asked of phones or words."
if "words" in written:
    news = f"Of {written['words'].facts['tokens']} words, {(tokens.features > 0).sum()} have a feature that goes with them."
if len(told):
    news = (
        f"The best feature of a phone finds it with an F1 of {compared.f1[0]:.2f} on average "
        f"({compared.f1_all[0]:.2f} with pauses and edges), MLP neurons with {compared.f1[1]:.2f}, "
        f"chance with {by_chance:.2f}; {answers.facts['found']:,} pairs are beyond both nulls."
    )
tables = {"calibrations": calibrated.table, "detectors": compared, "features": features, "words": tokens}
tables |= {"acoustics": acoustic, "sounds": by_kind, "families": families}
made = [clips, acts, *built.values(), *steps.values(), *written.values(), heard_of]
made += [answers] * (answers is not None)
results.save("06_meaning", run.name, headline=news, tables=tables, steps=made)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# In the demo most phones have a feature that finds them in the speech of new speakers, and where it fires can be heard. What
# a feature goes with is not yet what it does: for that the model has to be changed.
#
# Tried and dropped: shifts as the only null, which take the time in a window for a phone where all read one sentence; shuffling labels frame by frame as a null, which finds too much, because frames are no independent draws; one shift for all
# clips of a speaker, which finds too much where clips differ; and leaving out short shifts, which finds far too much.
#
# Back: [4 · Which features tell women from men, and accent from accent?](04_voices.ipynb)
