# %% [markdown]
# # 3 · Do clips lie in clumps, and what are the clumps of?
#
# > A map always shows islands and k-means always finds clusters; beside clouds without clumps, few of them are left,
# > and what they are of is seldom what one hoped for.
#
# **You will** lay clips and directions out on maps, look for clusters where the points really are, hear some, and grow
# a tree of accents.
#
# **You will learn** what a map must not be asked, what a silhouette has to beat, how far a split of a tree can be relied
# on, and why a forest that has met the speakers says nothing.
#
# **You need** the results of notebooks 1 and 2.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 2 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.data import audio
from whisper_sae.experiments import clip_clusters, feature_index, pipeline, sae_comparison
from whisper_sae.features import clusters, index, trees
from whisper_sae.report import results
from whisper_sae.viz import cluster_plots, display
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## What a clip says on average
#
# A frame is 20 ms; who speaks and how does not change so fast. So a clip becomes one point: the mean of what each feature
# says over its valid frames. A feature's direction has length 1, so means are in the units of the activation. They are
# not standardised, for then the rarest features would weigh as much as the loudest. Whatever a dictionary says of
# every frame is kept in an index, which later pages read too.

# %% tags=["show-code"]
clips = cache.need(pipeline.clips(run, seed))
codes = cache.make(feature_index.codes(run, seed, run.focus))
averaged = cache.make(clip_clusters.means(run, seed, run.focus))
heard, said = pipeline.table(run, clips), index.Index(codes.path)
labels, left_out = clip_clusters.labels_of(heard, averaged.table("clips.csv"))  # (clip, label)
display.say(
    f"{averaged.facts['clips']:,} clips at {run.focus}, {said.rows:,} frames, {said.features:,} features, of which "
    f"{averaged.facts['silent_features']:,} never fire. Told of the clips: {', '.join(labels) or 'nothing'}."
)
display.say(sae_comparison.seed_note(run, seed, run.focus))
if left_out:
    reasons = [f"{name} ({why})" for name, why in left_out.items()]
    display.say(f"Not asked: {', '.join(reasons)}.")

# %% [markdown]
# ## A map, only to be looked at
#
# t-SNE lays points out so that near ones stay near. How far islands lie apart, how large they are and what is beside
# what means nothing, and another seed draws another map: so here are two. **Trustworthiness** is 1 if whoever is near on
# the map is near in truth. *Kept* is the share of each point's ten neighbours that the other seed gives it too. Two
# principal directions are the rival, and a map by lot is chance.

# %% tags=["show-code"]
laid = cache.make(clip_clusters.mapped(run, seed, run.focus))
islands, way, trust = clip_clusters.tables_of(laid)
seeds = [f"t-SNE, seed {seed}", f"t-SNE, seed {seed + 1}"]
hoped = [name for name in ("accent", "gender") if name in labels]

# %% tags=["figure"]
if len(islands):
    display.show(
        cluster_plots.maps(islands, labels.loc[islands["clip"], hoped], seeds),
        alt="Two maps of the same clips. "
        + "; ".join(f"{one.map}: {one.trustworthiness:.2f}" for one in trust[:2].itertuples()),
        caption=f"A point is a clip, {len(islands):,} in all; what is not told is grey. Axes have no meaning.",
    )
display.table(trust, caption="How far to trust each map, by the ten nearest neighbours of each point.")
for why in filter(None, (laid.facts["why_clips"], laid.facts["why_directions"])):
    display.say(f"A map is missing: {why}.")

# %% [markdown]
# The directions of the dictionary have a map too, by the angle between them. What fires often is light: if the frequent
# ones lay together, they would be variations of few things.

# %% tags=["figure"]
if len(way):
    rate = said.rates[way.feature]
    display.show(
        cluster_plots.shaded(way, rate, seeds, "share of frames on which it fires"),
        alt=f"{len(way)} directions on two maps; they fire on {rate.min():.4%} to {rate.max():.0%} of the frames.",
        caption=f"A point is a direction of {run.focus} that fires at least once, laid by its angle to the others.",
    )

# %% [markdown]
# ## Are there clumps?
#
# Not on the map: clusters are looked for among the points themselves. k-means finds as many as it is asked for, so its
# **silhouette** (how much nearer a clip is to its own cluster than to the next) is set against clouds *without* clumps that
# are as long and as wide in every direction: the same variances, the points dealt anew by a random rotation. A
# long cloud cut in two has a fair silhouette, and this null knows it. The number of clusters is the one whose silhouette
# lies farthest above. Where a corpus has clips without words, speech is looked at by itself, too.

# %% tags=["show-code"]
looks = {"all clips": False, "clips of speech": True}  # whether only clips with words are looked at
if (heard.text[labels.index] == "").nunique() == 1:
    looks.pop("clips of speech")  # they are all the clips, or none
grouped = {name: cache.make(clip_clusters.grouped(run, seed, run.focus, spoken)) for name, spoken in looks.items()}
tables = clip_clusters.silhouettes_of(grouped)  # a row a number of clusters

# %% tags=["hide-input"]
for name, table in tables.items():
    best = table.loc[(table.silhouette - table.chance).idxmax()]
    display.say(
        f"Of {name}: {best.clusters:.0f} clusters, silhouette {best.silhouette:.2f}; clouds without clumps have {best.chance:.2f}, one in "
        f"twenty {best.chance_95:.2f} or more; p = {grouped[name].facts['p']:.3f} over all numbers tried."
    )
for name in set(grouped) - set(tables):
    display.say(f"No clusters of {name}: {grouped[name].facts['why']}.")

# %% tags=["figure"]
if tables:
    reach = "; ".join(
        f"{name} {one.silhouette.min():.2f} to {one.silhouette.max():.2f}" for name, one in tables.items()
    )
    display.show(
        cluster_plots.silhouettes(tables),
        alt=f"Silhouettes: {reach}; by chance {min(one.chance.min() for one in tables.values()):.2f} and more.",
        caption=f"Grey: {clusters.DRAWS} clouds with the same variances and no clumps. What is not above is a piece of one cloud.",
    )

# %% [markdown]
# ## What are they of?
#
# A label tells a cluster if knowing the one leaves less to learn of the other: the share is 0 where it tells nothing, 1 where
# it tells all. Many small groups tell something by chance, so labels are dealt anew: those of a speaker from speaker to
# speaker, so that a voice stays a voice; those of a clip within each voice. One table in twenty has a label below q = 0.05 in which
# nothing is; in the demo `null_label` is such a one. Expect speakers and accents, and be
# ready for less: how long a clip is, or how much of it is silence, also moves a mean.

# %% tags=["show-code"]
found = clip_clusters.clusters_of(grouped)  # (clip,) each
telling = {}
for name, cluster in found.items():
    asked, voice = labels.loc[cluster.index], heard.speaker[cluster.index]
    telling[name] = clusters.told_by(cluster, asked, voice, seed=seed)

# %% tags=["hide-input"]
for name, (table, unasked) in telling.items():
    display.table(
        table.drop(columns="p").rename(columns={"chance_95": "chance 95 %"}).head(10),
        caption=f"What tells the cluster of {name}: share told, chance and its 95 %, how many units were dealt, and q, the false discovery rate.",
    )
    told = [
        f"{row.label} ({row.share:.0%}, chance {row.chance:.0%})" for row in table[table.q < 0.05].head(3).itertuples()
    ]
    display.say(
        f"Of {name}, most is told by {', '.join(told) or 'nothing that is beyond chance'}."
        + (f" Not asked: {', '.join(unasked)}, for they differ nowhere or everywhere." if unasked else "")
    )

# %% tags=["figure"]
if found:
    name, cluster = list(found.items())[-1]  # speech by itself, where there is anything else
    tellers = telling[name][0].label[:1].tolist()
if found and len(islands):
    shown = labels.loc[islands["clip"], tellers]
    shown.insert(0, "cluster", (cluster + 1).astype(str).reindex(islands["clip"]).fillna(""))
    display.show(
        cluster_plots.maps(islands, shown, seeds),
        alt=f"The same maps, coloured by {cluster.nunique()} clusters of {name}, and by {''.join(tellers) or 'nothing else'}.",
        caption="The same points, coloured by the clusters that were found where they really are, and by what tells them most.",
    )

# %% [markdown]
# ## What does a cluster sound like?
#
# Before any statistic is believed, listen. Of each of the three largest clusters, three clips nearest to its middle, by
# three voices where there are as many. If you cannot say what they share, the table below has a reason.

# %% tags=["show-code"]
if found:
    x = clip_clusters.rows_of(averaged, cluster.index)  # (clip, feature)
    middle = clusters.medoids(x, cluster.to_numpy(), 3, voice)
    near = {n: cluster.index[middle[n]] for n in sorted(middle)[:3]}
    caption = f"From the middle of the largest clusters of {name}, at most 6 s."
    display.voices(clip_clusters.sounds(heard, near), audio.RATE, caption=caption)

# %% tags=["hide-input"]
foremost = pd.DataFrame()
if found:
    asked = [label for label in dict.fromkeys([*tellers, *hoped, "speaker", "text"]) if label in labels]
    foremost = clusters.foremost_by(cluster + 1, labels.loc[cluster.index, asked], voice, seed=seed)
    display.table(
        foremost[foremost.cluster <= 3].rename(columns={"chance_95": "chance 95 %"}),
        caption="The label that is in a cluster most above its share everywhere. Chance 95 %: what one in twenty dealings gives to "
        "whichever label then is most above its own share.",
    )

# %% [markdown]
# ## Which accents are alike?
#
# Now people instead of clips. A speaker is the mean of their clips, an accent the mean of its speakers, and Ward's method
# joins accents two at a time. Any means make a tree, so each split has its **support**: speakers are drawn anew
# within each accent, and the support is the share of such trees that have the split too. Beside it stands what the
# best split reaches where speakers have accents by lot. The second figure is the correlation between accents, less
# what all have in common, which makes it negative on average.

# %% tags=["show-code"]
means, cast = averaged.array("means.npy"), heard.loc[labels.index]
accents = labels.get("accent", pd.Series("", labels.index))
voices, (who, accent) = trees.voices_of(means, cast.speaker, accents)
try:
    grown, why = trees.tree(voices, accent, seed=seed), ""
except ValueError as too_few:
    grown, why = None, f"No tree of accents: {too_few}."
splits = trees.told(grown) if grown else pd.DataFrame()

# %% tags=["figure"]
if grown:
    low, high = grown.alike_by_chance
    order = trees.leaves(grown)
    display.show(
        cluster_plots.tree(grown),
        alt="Support: " + "; ".join(f"{row.groups} {row.support:.0%}" for row in splits.itertuples()),
        caption="In brackets the speakers of each accent. At a split its support, bold where it is above that of accents by lot.",
    )
    display.show(
        cluster_plots.matrix(grown.alike.iloc[order, order], "Accents, less what all share", 1),
        alt=f"By lot 95 % of the correlations lie between {low:.2f} and {high:.2f}.",
        caption="Correlation over features of the accents' means, less the mean of all accents.",
    )

# %% tags=["hide-input"]
if grown:
    sure = splits[splits.support > grown.chance]
    off = grown.alike.to_numpy()[np.triu_indices(len(grown.names), 1)]
    why = (
        f"Of {len(splits)} splits {len(sure)} are supported beyond chance (above {grown.chance:.0%}): {'; '.join(sure.groups) or 'none'}. "
        f"Of {len(off)} correlations between accents {((off < low) | (off > high)).sum()} lie outside {low:.2f} to {high:.2f}, where 95 % lie by lot."
    )
display.say(why)

# %% [markdown]
# ## Which features go together?
#
# Two features that fire on the same frames may be one thing said twice. Below are the most frequent ones, correlated over all
# frames and ordered by Ward; silent ones are left out, for theirs is no number. Chance is the same with each feature slid in
# time by its own lot. Expect few pairs that stand out, because of two features that say the same a sparse code would
# need but one. If their directions are alike, too (cosine), a single one may have been split.

# %% tags=["figure"]
joint = clip_clusters.joint(codes, cache.need(feature_index.codes(run, seed, run.focus).needs["trained"]), 40, seed)
pairs, order = joint.pairs, trees.in_order(joint.correlation)
together = pd.DataFrame(joint.correlation, joint.features, joint.features).iloc[order, order]
display.show(
    cluster_plots.matrix(together, "Features that fire together", 0.5),
    alt=f"Of {len(pairs)} pairs {(pairs.correlation > 0.5).sum()} correlate above 0.5; the highest is {pairs.correlation.max():.2f}.",
    caption="Features by number, ordered by Ward so that those that go together are neighbours. Colours end at ±0.5.",
)

# %% tags=["hide-input"]
display.table(
    pairs.head(6),
    caption="The pairs that correlate most; cosine: between their directions; both: of the frames of either.",
)
display.say(
    f"{(pairs.correlation.abs() > joint.chance).mean():.0%} of {len(pairs)} pairs are beyond what one in twenty reaches when slid ({joint.chance:.3f}): "
    f"frames of one sound share features. Above 0.5 are {(pairs.correlation > 0.5).sum()}, and of these {((pairs.correlation > 0.5) & (pairs.cosine > 0.5)).sum()} "
    "have directions with a cosine above 0.5."
)

# %% [markdown]
# What becomes of a feature when there is room for more? A dictionary with half as many latents is trained on the same frames. A
# feature of the larger one is **linked** to the nearest of the smaller if their cosine is 0.5 or more and the smaller's fires on at least
# half of its frames; a parent with two children or more was **split**. *First*: the share of the parent's frames on which its
# largest child fires; *absorbed*: on which only others do; *lost*: on which none does. By chance: directions drawn with the same covariance.

# %% tags=["hide-input"]
parents = pd.DataFrame()
if run.expansion >= 4:
    for needed in clip_clusters.smaller(run, seed, run.focus):
        cache.make(needed)
    grown_up = cache.make(clip_clusters.families_of(run, seed, run.focus))
    parents = clip_clusters.parents_of(grown_up)
    display.table(
        parents.head(6), caption="The parents with most children: how often they fire, and what became of their frames."
    )
    mine, facts = parents[parents.children > 0], grown_up.facts
    display.say(
        f"Of {len(grown_up.table('children.csv'))} features {facts['linked']} have a parent among {facts['latents']} ({facts['by_chance']} by chance); "
        f"{facts['split']} parents were split, and {(parents.children == 0).sum()} of {len(parents)} have no child. Of a parent's frames "
        f"{mine['first'].median():.0%} are its first child's, {mine.absorbed.median():.0%} absorbed, {mine.lost.median():.0%} lost (medians)."
    )

# %% [markdown]
# A mean hides how strongly a feature fires, and on how many frames. Expect silence almost everywhere, and, where the
# dictionary has a threshold, a gap between silence and the weakest call, the wider the rarer a feature. From frequent to rare:

# %% tags=["figure"]
ranked = np.argsort(-said.rates, kind="stable")[: int((said.rates > 0).sum())]
some = ranked[np.unique(np.linspace(0, len(ranked) - 1, 6).astype(int))].tolist()
firings = {f"{one}: {said.rates[one]:.3%}": said.activations(one)[1] for one in some}
display.show(
    cluster_plots.histograms(firings, said.rows),
    alt=f"Histograms of {len(some)} features that fire on {said.rates[some[0]]:.1%} to {said.rates[some[-1]]:.4%} of the frames.",
    caption=f"Number of a feature and how often it fires. Bars of a panel sum to {said.rows:,} frames; orange: silent.",
)

# %% [markdown]
# ## A forest that has met the speakers
#
# The system this project began from reported a random forest that reads gender off single frames. It split *frames* at random,
# so it was asked about voices it knew, beside frames 20 ms away. We ask the same forest three times: so; about speakers
# it never met; and, so again, for a gender that each speaker was given *by lot*. What it reads of the latter is not gender.

# %% tags=["hide-input"]
asked_thrice = cache.make(clip_clusters.forests(run, seed, run.focus))
forest = pd.DataFrame() if asked_thrice.facts["why"] else asked_thrice.table("read.csv")
said_of_it = f"No forest: {asked_thrice.facts['why']}."
if len(forest):
    met, new, lot = forest.balanced
    display.table(
        forest, caption="Majority: what the most frequent label scores. Balanced: mean over labels, 95 % over speakers."
    )
    said_of_it = f"Balanced accuracy, split by frame, {met:.1%}; of speakers it never met, {new:.1%}; of a gender by lot, split by frame, {lot:.1%}."
display.say(said_of_it)

# %% [markdown]
# Split by frame it reads what it knows of the voices. Notebook 4 asks for gender as one has to.
#
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That there are clumps*: the null is one normal cloud. A single cloud with a heavy tail or a bend also beats it, and
# so would clips by few voices, each a small clump; look at what tells the clusters, not at p alone. Their
# *number* is the least certain of all: where silhouettes are low and near each other, another beginning of k-means has another best. *That there are none*: frames
# instead of clips, or another distance; means are coarse, and loud features weigh most. *That accents
# are alike as in the tree*: support on other speakers of the same accents, or a tree that changes when gender and microphone
# are balanced. *That features go together*: correlations within one phone, for what shares a phone shares features.
# </aside>
#
# ## Checks
#
# Means times frames are sums of firings; points and labels are in one order; the tables of correlations are symmetric and hold
# numbers; the bars of a histogram sum to the frames.

# %% tags=["checks"]
frames, one = averaged.table("clips.csv").frames.to_numpy(), some[0]
sums = averaged.array("means.npy")[:, one].astype(float) @ frames
assert np.isclose(sums, said.activations(one)[1].sum(dtype=float), rtol=1e-3)
assert (joint.correlation == joint.correlation.T).all() and np.isfinite(joint.correlation).all()
assert all(cluster_plots.counted(values, said.rows)[1].sum() == said.rows for values in firings.values())

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    every, spoken = (telling[name][0].set_index("label") for name in ("all clips", "clips of speech"))
    of_null = spoken.share["null_label"] / spoken.chance_95["null_label"]
    calibrated.at_least("clusters of all clips: share of speech or sound that they tell", every.share["kind"], 0.3)
    calibrated.at_most("clusters of speech: null label, times what one permutation in 20 reaches", of_null, 3)
    by_map = trust.trustworthiness
    calibrated.at_least("trustworthiness: t-SNE less two principal components", by_map[:2].min() - by_map[2], 0.03)
    calibrated.at_least("trustworthiness: two principal components less chance", by_map[2] - by_map[3], 0.1)
    calibrated.at_least("permuted gender, forest split by frame, above chance", lot - 0.5, 0.08)
    calibrated.at_least("gender: forest split by frame less split by speaker", met - new, 0.04)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(f"{averaged.facts['clips']} clips, {said.rows} frames, {said.features} features")
print("looked for clusters of:", ", ".join(f"{step.facts['clips']} {name}" for name, step in grouped.items()))
print("labels:", ", ".join(labels), "| tree of:", ", ".join(grown.names) if grown else "nothing")

# %% tags=["save"]
news = [
    f"{name}: {grouped[name].facts['clusters']} clusters (p = {grouped[name].facts['p']:.3f}), told most by {' '.join(table.label[:1]) or 'nothing'}"
    for name, (table, _) in telling.items()
]
news += [f"{len(sure)} of {len(splits)} splits of the tree of accents are beyond chance"] if grown else []
if len(forest):
    news.append(
        f"a forest that met the speakers reads {met:.0%} of gender, {lot:.0%} of one by lot, {new:.0%} of new speakers"
    )
saved = {
    "calibrations": calibrated.table,
    "trust": trust,
    "foremost": foremost,
    "accents": splits,
    "pairs": pairs,
    "families": parents,
    "forest": forest,
}
for name in tables:
    saved |= {f"silhouettes_{name.replace(' ', '_')}": tables[name], f"told_{name.replace(' ', '_')}": telling[name][0]}
steps = [clips, codes, averaged, laid, *grouped.values(), asked_thrice]
headline = f"Of {'; '.join(news) or 'these clips no map or cluster could be made'}."
results.save("03_clusters", run.name, headline=headline, tables=saved, steps=steps)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# Maps are pictures. Of clusters, those of speech against other sounds are real in the demo. Those within its speech
# are weak, and what tells them is how long a clip is, because the layer says where in the window a frame lies, and not who
# speaks: the means of clips are no place to look for voices: features have to be asked one by one, speaker by speaker.
#
# That the length of a clip moves its mean was tried: of means over the first part of every clip, as long for all, it tells
# next to nothing, and the silence before the first word tells most.
#
# Dropped: dealing each feature's values anew as the null of k-means, which any long cloud beats; standardised
# features, of which the rarest decided the distance; means over frames of speech alone, in which one cluster was of
# clips whose silence is hard to tell; t-SNE begun from principal directions, which makes all seeds agree.
#
# Back: [2 · Can a few directions at a time re-say what a layer says?](02_training.ipynb)
#
# Next: [4 · Which features tell women from men, and accent from accent?](04_voices.ipynb)
