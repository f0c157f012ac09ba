# %% [markdown]
# # 2 · Can a few directions at a time re-say what a layer says?
#
# > A dictionary of many directions, of which a few are used at a time, says most of what a layer says — and it
# > has to be set beside simpler ways of saying it, and beside half-random ones, before that means anything.
#
# **You will** train a sparse autoencoder on every recorded site and see what it keeps, what it costs and what it
# leaves out.
#
# **You will learn** to read FVU and L0 together, to distrust a dictionary with dead latents, to ask what the mean,
# principal directions, neurons, centroids and random directions would have scored, and to choose without flattery.
#
# **You need** the results of notebook 1.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 7 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd
import torch

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table
from whisper_sae.experiments import evaluation_clips, pipeline, sae_comparison
from whisper_sae.report import results
from whisper_sae.sae import architectures, diagnostics, metrics
from whisper_sae.viz import display
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## A dictionary in one formula
#
# A **sparse autoencoder** (SAE) re-says an activation $x$ as a sum of few directions out of many:
#
# $$f = \text{sparsify}\big((x - b_{\text{dec}})\,W_{\text{enc}} + b_{\text{enc}}\big), \qquad \hat x = f\,W_{\text{dec}} + b_{\text{dec}}$$
#
# Each row of $W_{\text{dec}}$ is a direction of length 1, a **latent**; $f$ says how strongly each of them fires, and is
# mostly zero. **BatchTopK** keeps, among the frames of a batch, the $k$ strongest calls a frame on average: a
# rich instant may use more, a plain one fewer. In training it learns the threshold that does the same one
# frame at a time.

# %%
acts = cache.need(pipeline.activations(run, seed))
clips = cache.need(pipeline.clips(run, seed))
sites = list(acts.facts["sites"])

# %% tags=["hide-input"]
width = acts.facts["sites"][run.focus]
display.say(
    f"Here: {run.variant}, {run.expansion} × {width} = {run.expansion * width:,} latents on {run.focus}, of which "
    f"k = {run.k} fire on a frame; {run.tokens:,} frames seen in training, Adam at {run.learning_rate:g}."
)

# %% [markdown]
# ## One dictionary for every site
#
# Every site gets a dictionary of its own, trained on the training speakers. All scores on this page are of the
# **validation speakers**, on which no dictionary was trained. **FVU**, the fraction of variance unexplained, is the
# squared error over the squared distance from the mean: the mean scores 1, a perfect reconstruction 0. As a sum it is
# decided by the longest frames. In Whisper a few frames are **massive**
# ([Sun et al. 2024](https://arxiv.org/abs/2402.17762)): more than four median norms long, they can hold most of the
# variance of a layer. So layers are compared by the same ratio of each frame, **frame FVU**, its median within a speaker,
# and by the mean cosine of frames to their reconstructions.

# %% tags=["show-code"]
trained = {site: cache.make(sae_comparison.dictionary(run, seed, site, beside=sites)) for site in sites}
for site in evaluation_clips.sites_of(run):
    if site.startswith("decoder"):  # for notebook 5; this page is about the encoder
        cache.make(sae_comparison.dictionary(run, seed, site))

# %%
scores = pd.DataFrame(
    [{"site": site, "seconds": step.manifest["seconds"], **step.facts} for site, step in trained.items()]
)
best, worst = scores.loc[scores.frame_fvu.idxmin()], scores.loc[scores.frame_fvu.idxmax()]

# %% tags=["hide-input"]
shown = scores[["site", "frame_fvu", "frame_fvu_low", "frame_fvu_high", "cosine", "fvu", "l0", "dead"]]
shown.columns = ["site", "frame FVU", "from", "to", "cosine", "FVU", "L0", "dead"]
display.table(
    shown,
    caption=f"Each dictionary on frames of {scores.speakers.max()} held-out speakers. Frame FVU: the mean over speakers "
    "of their medians, with its 95 % interval (Student's t; a clip without a speaker counts as one; none below six). "
    "Dead: the share of latents that fire on none of these frames.",
)
held = scores[["site", "massive_frames", "massive_variance", "fvu", "fvu_usual"]]
held.columns = ["site", "massive frames", "their share of the variance", "FVU", "FVU without them"]
display.table(held, caption="Frames of more than four median norms, and the FVU with and without them.")

# %% tags=["hide-input"]
decided = scores[scores.massive_variance > 0.2]
if len(decided):
    display.say(
        f"Caution: at {', '.join(decided.site)} at most {decided.massive_frames.max():.2%} of the frames hold "
        f"at least {decided.massive_variance.min():.0%} of the variance. "
        "The FVU there is a score of these frames; compare layers by frame FVU and cosine."
    )
display.say(
    f"At L0 around {run.k}, the median frame leaves between {best.frame_fvu:.1%} ({best.site}) and "
    f"{worst.frame_fvu:.1%} ({worst.site}) of its squared distance from the mean unexplained."
)

# %% [markdown]
# ## How it learned
#
# Three things to watch. The error should fall and then flatten; a curve still falling at the end asks for more
# tokens. L0 should stay at $k$. And the dead share should stay small: a latent that has not fired for
# long is called dead, and an auxiliary loss then lets the loudest dead ones explain what the living leave over.

# %% tags=["figure"]
history = trained[run.focus].table("history.csv")
display.show(
    display.learning(history),
    alt=f"The FVU of a batch falls from {history.fvu.iloc[0]:.2f} to {history.fvu.iloc[-1]:.3f}, L0 ends at "
    f"{history.l0.iloc[-1]:.1f}, dead latents peak at {history.dead.max():.1%} and end at {history.dead.iloc[-1]:.1%}.",
    caption=f"Training on {run.focus}, running means. Reconstruction is the squared error per dimension, where activations "
    f"have a mean square of 1; auxiliary is {run.auxiliary:g} of the share of that error which dead latents could not explain, 0 while none is dead.",
)

# %% [markdown]
# ## Beside the simplest rivals
#
# A low FVU proves little by itself: where a few directions hold most of the variance, almost anything scores
# well. So each rival says a frame in as many numbers as the dictionary was measured to use. *Principal
# directions* keep the same few axes for every frame. *Neurons* keep the most unusual ones of the frame. A
# *random dictionary* has as many latents, never trained. A *centroid* is one number, its own: k-means, the
# nearest centre instead of a sum. The null is the mean: FVU 1, up to what the speakers differ. One thing
# is not counted: the dictionary and the neurons also choose *which* numbers to say, frame by frame.
#
# The hardest rivals are trained too, with [one half left random](https://arxiv.org/abs/2602.14111): the directions
# that are said, or the directions that are asked for. What they reach, learning the other half reaches alone.

# %% tags=["show-code"]
halves = () if run.variant == "tied" else ("decoder", "encoder")
frozen = [cache.make(sae_comparison.dictionary(run, seed, run.focus, frozen=half)) for half in halves]
half_random = {site: halves if site == run.focus else () for site in sites}  # the dear ones
rivals = [cache.make(sae_comparison.rivals(run, seed, site, half_random[site])) for site in sites]
tables = [sae_comparison.scores(step) for step in rivals]
compared = pd.concat(tables, keys=sites, names=["site", "row"]).reset_index("site")

# %% tags=["figure"]
simple = ~compared.rival.str.contains("trained|mean")
fig = display.with_intervals(compared[simple], "site", "fvu", by="rival")
fig.axes[0].set(title="The same number of numbers, spent differently", ylabel="FVU, held-out speakers")
at = compared[compared.site == run.focus].set_index("rival")
display.show(
    fig,
    alt="At " + run.focus + ": " + ", ".join(f"{name} {fvu:.2f}" for name, fvu in at.fvu.items()) + ".",
    caption="Lower is better. Bars are 95 % intervals over speakers.",
)

# %% tags=["hide-input"]
shown = at.reset_index()[["rival", "numbers", "fvu", "fvu_low", "fvu_high", "cosine", "speakers"]]
shown.columns = ["way of saying a frame", "numbers", "FVU", "from", "to", "cosine", "speakers"]
display.table(
    shown,
    caption=f"All rivals at {run.focus} on held-out speakers; 95 % intervals over speakers. Numbers: how many are said of "
    "a frame, for dictionaries the measured L0. Half-random dictionaries are trained as long as the whole one, biases and all.",
)

# %% tags=["hide-input"]
left = {name: f"{fvu:.1%}" for name, fvu in at.fvu.items()}
half = "".join(f"; {name}, {fvu}" for name, fvu in left.items() if "trained" in name)
display.say(
    f"At {run.focus} the dictionary leaves {left['dictionary']}, as many principal directions {left['principal directions']}, a random "
    f"dictionary {left['random dictionary']}{half}. What learning adds is the distance to these, not to the mean."
)

# %% [markdown]
# ## What sparsity costs
#
# $k$ is a price: how many latents one may read to understand a frame. Expect FVU to fall with L0, and to fall ever
# less. Which variant makes most of the price? A **sweep** trains one dictionary at every point of a grid, each on
# fewer frames than above. `relu` knows no $k$: its price is set by the weight of its penalty. A point is
# on the **front** when no other is both as sparse and as close. The principal directions are the line to
# beat: a dictionary that is not below it has learned nothing that a rotation would not do.

# %% tags=["show-code"]
points = sae_comparison.grid(run, seed)
swept = cache.make(sae_comparison.sweep(points, seed, run.focus))
sweep = sae_comparison.scores(swept)  # a row a point

# %%
known = metrics.moments([sae_comparison.frames_of(run, clips, acts, run.focus, "train")[0].sample(65_536, seed)])
ranks = np.unique(np.geomspace(1, min(width, sweep.l0.max()), 8).round().astype(int))
turn = {rank: metrics.say_principal(known, rank) for rank in ranks.tolist()}
told = sae_comparison.score_each(turn, *sae_comparison.frames_of(run, clips, acts, run.focus))
turned = pd.DataFrame([{"l0": rank, **score} for rank, score in told.items()])

# %% tags=["figure"]
front = sweep[sweep.front].sort_values("l0")
fig = display.pareto(sweep, turned, "principal directions")
fig.axes[0].set(title=f"What a frame of {run.focus} costs")
display.show(
    fig,
    alt=f"The front falls from {front.fvu.iloc[0]:.1%} at L0 {front.l0.iloc[0]:.1f} to {front.fvu.iloc[-1]:.1%} at L0 "
    f"{front.l0.iloc[-1]:.1f}; it holds {', '.join(front.variant.unique())}. As many principal directions leave {turned.fvu.iloc[0]:.1%} "
    f"with {ranks[0]} and {turned.fvu.iloc[-1]:.1%} with {ranks[-1]}.",
    caption=f"{len(sweep)} dictionaries, each trained on {points[0].run.tokens:,} frames. Held-out speakers; bars are 95 % intervals "
    "over speakers. For principal directions L0 is how many are kept.",
)

# %% [markdown]
# Picking the best of many on some speakers flatters it. So the choice is made on the validation speakers, and the
# chosen one is then scored on the **test speakers**, whom nothing has been chosen on.

# %% tags=["show-code"]
affordable = sweep[sweep.l0 <= max(1.1 * run.k, sweep.l0.min())]
chosen = affordable.loc[affordable.fvu.idxmin()]
its_step = cache.need(points[chosen.name].recipe(seed, run.focus))
say = architectures.load(its_step.path)
unseen = sae_comparison.score(run, clips, acts, run.focus, say, "test")

# %% tags=["hide-input"]
shown = front[["variant", "k", "penalty", "l0", "fvu", "fvu_low", "fvu_high", "dead", "seconds"]].head(10)
shown.columns = ["variant", "k", "penalty", "L0", "FVU", "from", "to", "dead", "s"]
display.table(
    shown, caption="The points on the front, on held-out speakers; all points are in the CSV. s: seconds of training."
)
line = np.exp(np.interp(np.log(sweep.l0), np.log(turned.l0), np.log(turned.fvu)))  # at each point's L0
above = sweep.variant[sweep.fvu >= line].value_counts()
display.say(
    f"Of {len(sweep)} points {above.sum()} are not below the line of principal directions"
    + (f" ({', '.join(f'{n} of {name}' for name, n in above.items())})" if len(above) else "")
    + "."
)
display.say(
    f"At a price of at most {1.1 * run.k:.1f} the best is {points[chosen.name].label}: it leaves {chosen.fvu:.1%} on the "
    f"validation speakers and {unseen['fvu']:.1%} ({display.between(unseen['fvu_low'], unseen['fvu_high'])}) on {unseen['speakers']} test speakers."
)

# %% [markdown]
# ## Does it hold off its training frames, and for another seed?
#
# BatchTopK learns one threshold on training frames, and on other speakers more latents may pass it. And a dictionary is
# one of many: another seed gives other directions that reconstruct as well. A latent has a **counterpart** if some
# latent of the other dictionary has a decoder direction with a cosine of at least 0.7; random directions are the null.

# %% tags=["show-code"]
say = architectures.load(trained[run.focus].path)
few = sae_comparison.frames_of(run, clips, acts, run.focus, "train")[0]
some = few.sample(16_384, seed)  # (frame, d_in)
on_train = metrics.reconstruction(say, some.split(4096), centre=some.mean(dim=0))
on_train["l0"] = float(metrics.firing(say.encode, some.split(4096)).sum())
cache.make(sae_comparison.dictionary(run, seed, run.focus, own_seed=seed + 1))
stable = cache.make(sae_comparison.stability(run, seed, run.focus))

# %% tags=["hide-input"]
both = pd.DataFrame([on_train, trained[run.focus].facts], index=["training", "held-out"])
both = both[["l0", "frame_fvu", "fvu", "cosine", "frames"]].rename_axis("speakers").reset_index()
display.table(both.rename(columns={"l0": "L0", "frame_fvu": "frame FVU", "fvu": "FVU"}), caption=f"The dictionary of {run.focus} on frames of training and of held-out speakers.")  # fmt: skip
display.say(f"Training frames: {diagnostics.too_few(len(few), say.d_sae) or 'enough'}.")
found = pd.DataFrame([stable.facts])[["latents", "found", "found_by_firing", "chance", "median"]]
found.columns = ["active latents", "with a counterpart", "weighted by firing", "random directions", "median cosine"]
display.table(found, caption=f"Latents of {run.focus} that a dictionary of seed {seed + 1} has, too. What later pages say of a feature is said of this training.")  # fmt: skip

# %% [markdown]
# ## Which latents live
#
# A good dictionary has latents for rare things and for common ones, and few that never fire or always do. A
# latent that fires on most frames is not a feature of anything; one that fires on none is wasted.

# %%
rates = trained[run.focus].array("firing.npy")  # (latent,), the share of held-out frames it fires on
alive, always = rates[rates > 0], float((rates > 0.5).mean())

# %% tags=["figure"]
fig = display.rates(rates)
fig.axes[0].set(title="How often latents fire")
display.show(
    fig,
    alt=f"A histogram of {len(alive):,} living latents; the middle one fires on {np.median(alive):.2%} of the frames.",
    caption=f"Held-out frames at {run.focus}. Not drawn: {len(rates) - len(alive):,} latents that fire on none of them.",
)

# %% tags=["hide-input"]
by_k = sweep[(sweep.variant == run.variant) & (sweep.k != "")].drop_duplicates("k")
display.say(
    f"Of {len(rates):,} latents {1 - len(alive) / len(rates):.1%} are dead on the held-out frames and {always:.2%} fire on more "
    f"than half of them; the median living latent fires on {np.median(alive):.2%}. Dead in the sweep: "
    + (", ".join(f"{dead:.0%} at k = {k}" for k, dead in zip(by_k.k, by_k.dead, strict=True)) or "see its table")
    + "."
)

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That the dictionary learned something*: any rival, the half-random ones above all, inside its interval.
# *That one variant is better*: another order on the test speakers, or after a training as long as the first ones.
# *That it learned enough*: a longer training that lowers FVU by more than the interval is wide. *That its
# directions mean anything*: this page says nothing about that. A low FVU is about re-saying, not about
# understanding, and another seed may find other directions that re-say as well.
# </aside>
#
# ## Checks
#
# Directions have length 1; codes are sparse and never negative; what was saved is what was measured; and every
# validation and test speaker is unknown to the training.

# %% tags=["checks"]
coder = architectures.load(trained[run.focus].path)
rows, voices = sae_comparison.frames_of(run, clips, acts, run.focus)
x = rows.take(np.arange(min(2048, len(rows))))  # (frame, d_in)
with torch.no_grad():
    f = coder.encode(x)  # (frame, d_sae)
assert torch.allclose(coder.W_dec.norm(dim=1), torch.ones(coder.d_sae), atol=1e-5)
assert (f >= 0).all()
assert torch.allclose(coder.decode(f), coder(x), atol=1e-3)

# %% tags=["checks"]
assert clip_table.has_valid_split(pipeline.table(run, clips)), "a speaker is in two splits"
assert (front.fvu.diff().dropna() <= 0).all() and chosen.fvu >= sweep.fvu.min()

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    mean, pca, random = (at.fvu[name] for name in ("the mean", "principal directions", "random dictionary"))
    calibrated.at_most("FVU of the mean, away from 1", abs(mean - 1), 0.1)
    calibrated.at_most("FVU of the worst SAE", scores.fvu.max(), 0.2)
    calibrated.at_most("FVU of the SAE as a share of that of PCA at matched L0", at.fvu["dictionary"] / pca, 0.5)
    calibrated.at_most("FVU of the SAE as a share of that of a random SAE", at.fvu["dictionary"] / random, 0.5)
    found_again = stable.facts["found_by_firing"] - stable.facts["chance"]
    calibrated.at_least("firings of latents with a counterpart, less random directions", found_again, 0.15)
    calibrated.at_most("L0 on held-out speakers, away from k as a share", abs(scores.l0 / run.k - 1).max(), 0.25)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(f"{len(trained)} dictionaries of {coder.d_sae} latents, k = {coder.k}, trained on {run.tokens:,} frames each")
print("rivals:", ", ".join(at.index[1:]))
print(f"sweep: {len(points)} points:", "; ".join(sae_comparison.asks(point.run) for point in points))

# %% tags=["save"]
results.save(
    "02_training",
    run.name,
    headline=f"With {run.k} of {coder.d_sae:,} latents a frame, the median frame leaves {best.frame_fvu:.1%} ({best.site}) to "
    f"{worst.frame_fvu:.1%} ({worst.site}) unexplained; at {run.focus} FVU is {left['dictionary']}, PCA at matched L0 "
    f"{left['principal directions']}; another seed finds {stable.facts['found']:.0%} of the latents.",
    tables={"dictionaries": scores, "rivals": compared, "sweep": sweep, "calibrations": calibrated.table},
    steps=[clips, acts, *trained.values(), *frozen, *rivals, swept, stable],
)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# A dictionary re-says a layer with few latents, and the price is on the table, beside what simpler ways would
# pay. Which of its latents mean something is not settled by any number on this page.
#
# Tried and dropped: starting the encoder at full strength, which overshot on the demo at the largest $k$; it now
# starts at the scale that suits a first batch. Where $k$ is small, most latents of the demo stay dead. Counting them as
# dead sooner, a larger auxiliary loss, beginning them anew, and starting all of them at frames did not mend that; a higher
# learning rate did in part, and lowered FVU as well, and half as many latents cost next to nothing. The demo's profile has both.
#
# Back: [1 · What does Whisper's encoder say while it listens?](01_extraction.ipynb)
#
# Next: [3 · Do clips lie in clumps, and what are the clumps of?](03_clusters.ipynb)
