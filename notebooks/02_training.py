# %% [markdown]
# # 2 · Can a few directions at a time re-say what a layer says?
#
# > A dictionary of many directions, of which a few are used at a time, says most of what a layer says — and it
# > has to be set beside simpler ways of saying it before that means anything.
#
# **You will** train a sparse autoencoder on every recorded site and see what it keeps, what it costs and what it
# leaves out.
#
# **You will learn** to read FVU and L0 together, to distrust a dictionary with dead latents, and to ask what the
# mean, principal directions, single neurons and a random dictionary would have scored.
#
# **You need** the results of notebook 1.
#
# **Time** demo 20 s on 2 cores · two hours of speech through `tiny` 20 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from whisper_sae import figures, findings, measure, profiles, recipes, sae, store

run = profiles.choose(profile)
figures.use_style()

# %% [markdown]
# ## A dictionary in one formula
#
# A **sparse autoencoder** (SAE) re-says an activation $x$ as a sum of few directions out of many:
#
# $$f = \mathrm{sparsify}\big((x - b_{dec})\,W_{enc} + b_{enc}\big), \qquad \hat x = f\,W_{dec} + b_{dec}$$
#
# Each row of $W_{dec}$ is a direction of length 1, a **latent**; $f$ says how strongly each of them fires, and is
# mostly zero. **BatchTopK** keeps, among the frames of a batch, the $k$ strongest calls a frame on average: a
# rich instant may use more, a plain one fewer. In training it learns the threshold that does the same one
# frame at a time.

# %%
acts = store.need(recipes.activations(run, seed))
clips = store.need(recipes.clips(run, seed))
sites = list(acts.facts["sites"])

# %% tags=["hide-input"]
width = acts.facts["sites"][run.focus]
figures.say(
    f"Here: {run.variant}, {run.expansion} × {width} = {run.expansion * width:,} latents on {run.focus}, of which "
    f"k = {run.k} fire on a frame; {run.tokens:,} frames seen in training, Adam at {run.learning_rate:g}."
)

# %% [markdown]
# ## One dictionary for every site
#
# Every site gets a dictionary of its own, trained on the training speakers. All scores on this page are of the
# **validation speakers**, whom no dictionary has heard. **FVU**, the fraction of variance unexplained, is the
# squared error over the spread around the mean: saying the mean scores 1, saying everything scores 0.

# %% tags=["show-code"]
trained = {site: store.make(recipes.dictionary(run, seed, site, run.k)) for site in sites}

# %%
scores = pd.DataFrame(
    [{"site": site, **step.facts, "seconds": step.manifest["seconds"]} for site, step in trained.items()]
)
best, worst = scores.loc[scores.fvu.idxmin()], scores.loc[scores.fvu.idxmax()]

# %% tags=["hide-input"]
columns = {
    "site": "site", "fvu": "FVU", "fvu_low": "from", "fvu_high": "to", "l0": "L0", "dead": "dead share",
    "cosine": "cosine", "speakers": "speakers", "frames": "frames", "seconds": "training, s",
}  # fmt: skip
figures.table(
    scores[list(columns)].rename(columns=columns),
    caption="Each dictionary on held-out speakers. FVU comes with a 95 % interval over speakers (delete-one "
    "jackknife, Student's t). Dead: the share of latents that fire on none of these frames.",
)

# %% tags=["hide-input"]
figures.say(
    f"At L0 around {run.k}, between {best.fvu:.1%} ({best.site}) and {worst.fvu:.1%} ({worst.site}) of the variance stays unexplained."
)

# %% [markdown]
# ## How it learned
#
# Three things to watch. FVU should fall and then flatten; a curve still falling at the end asks for more
# tokens. L0 should stay at $k$. And the dead share should stay small: a latent that has not fired for
# long is called dead, and an auxiliary loss then lets the loudest dead ones explain what the living leave over.

# %%
history = trained[run.focus].table("history.csv")
smooth = history.rolling(max(1, len(history) // 50), min_periods=1).mean()

# %% tags=["figure"]
fig, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, column, title in zip(
    axes, ["fvu", "l0", "dead"], ["FVU falls", "L0 is kept at k", "Dead latents"], strict=True
):
    axis.plot(history.tokens, history[column], color=figures.PALE, linewidth=0.8)
    axis.plot(smooth.tokens, smooth[column], color=figures.BLUE)
    axis.set(title=title, xlabel="frames seen", ylim=(0, None))
axes[0].set(yscale="log", ylim=(None, None))
figures.show(
    fig,
    alt=f"FVU falls from {history.fvu.iloc[0]:.2f} to {smooth.fvu.iloc[-1]:.3f}, L0 ends at {smooth.l0.iloc[-1]:.1f}, "
    f"dead latents peak at {history.dead.max():.1%} and end at {history.dead.iloc[-1]:.1%}.",
    caption=f"Training on {run.focus}: each step in grey, a running mean in blue. FVU here is of the training batch.",
)

# %% [markdown]
# ## Beside the simplest rivals
#
# A low FVU proves little by itself: where a few directions hold most of the variance, almost anything scores
# well. So each rival says a frame with as many numbers as the dictionary uses on average. *Principal
# directions* keep the same few axes for every frame. *Neurons* keep the most unusual ones of the frame. A
# *random dictionary* has as many latents, never trained; only one overall scale is fitted, so that it is not
# punished for its loudness. The null is the mean: FVU 1, up to what the speakers differ.


# %%
def rivals(site):
    """Every way of saying a frame of `site` in about k numbers, each a function x -> x_hat."""
    rows, _ = recipes.frames_of(run, clips, acts, site, "train")
    sample = rows.sample(65_536, seed)
    known, d_in = measure.moments([sample]), rows.width
    untrained = sae.create(run.variant, d_in, run.expansion * d_in, run.k, seed)
    untrained.start_on(sample[:4096])
    return {
        f"dictionary, L0 ≈ {run.k}": sae.load(trained[site].path),
        f"{run.k} principal directions": measure.say_principal(known, min(run.k, d_in)),
        f"{run.k} neurons": measure.say_neurons(known, min(run.k, d_in)),
        "random dictionary": measure.say_scaled(untrained, known, sample[:4096]),
        "the mean": measure.say_mean(known),
    }


# %%
def score(site, say):
    """`say` on the held-out frames of `site`."""
    rows, voices = recipes.frames_of(run, clips, acts, site)
    return measure.reconstruction(say, rows.chunks(4096), voices)


compared = pd.DataFrame(
    [{"site": site, "rival": name, **score(site, say)} for site in sites for name, say in rivals(site).items()]
)

# %% tags=["figure"]
fig, axis = plt.subplots(figsize=(7.2, 4))
looks = zip(
    ["o", "^", "s", "D", "x"], [figures.BLUE, figures.ORANGE, figures.INK, figures.GREY, figures.GREY], strict=True
)
for (name, part), (marker, colour) in zip(compared.groupby("rival", sort=False), looks, strict=True):
    reach = np.abs(part[["fvu_low", "fvu_high"]].to_numpy().T - part.fvu.to_numpy())
    axis.errorbar(part.site, part.fvu, yerr=reach, marker=marker, color=colour, label=name, capsize=3, linewidth=1.2)
axis.set(title="The same number of numbers, spent differently", ylabel="FVU, held-out speakers", ylim=(0, 1.1))
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
at = compared[compared.site == run.focus].set_index("rival").fvu
figures.show(
    fig,
    alt="At " + run.focus + ": " + ", ".join(f"{name} {value:.2f}" for name, value in at.items()) + ".",
    caption="Lower is better. Bars are 95 % intervals over speakers.",
)

# %% tags=["hide-input"]
figures.say(
    f"At {run.focus} the dictionary leaves {at.iloc[0]:.1%}, as many principal directions leave {at.iloc[1]:.1%}, and a random "
    f"dictionary {at.iloc[3]:.1%}. What training adds is the difference to the last, not to the mean."
)

# %% [markdown]
# ## What more latents buy
#
# $k$ is a price: how many latents one may read to understand a frame. Expect FVU to fall with $k$, and to
# fall ever less. The curve of the principal directions is drawn at the same price; a dictionary that does not stay below it
# has learned nothing that a rotation would not do.

# %% tags=["show-code"]
sweep = {k: store.make(recipes.dictionary(run, seed, run.focus, k)) for k in run.trade_off}

# %%
trade = pd.DataFrame([{"k": k, **step.facts} for k, step in sweep.items()])
known = measure.moments([recipes.frames_of(run, clips, acts, run.focus, "train")[0].sample(65_536, seed)])
trade["rotation"] = [score(run.focus, measure.say_principal(known, min(k, width)))["fvu"] for k in trade.k]

# %% tags=["figure"]
fig, axis = plt.subplots()
reach = np.abs(trade[["fvu_low", "fvu_high"]].to_numpy().T - trade.fvu.to_numpy())
axis.errorbar(trade.l0, trade.fvu, yerr=reach, marker="o", color=figures.BLUE, capsize=3, label="dictionary")
axis.plot(trade.k, trade.rotation, marker="^", color=figures.ORANGE, linestyle="--", label="principal directions")
axis.set(title=f"What a frame of {run.focus} costs", xlabel="numbers used on a frame (L0, or directions)", ylabel="FVU")
axis.set(xscale="log", xticks=trade.k, xticklabels=trade.k, ylim=(0, None))
axis.minorticks_off()
axis.legend()
figures.show(
    fig,
    alt=f"The dictionary's FVU goes from {trade.fvu.iloc[0]:.3f} at L0 {trade.l0.iloc[0]:.1f} to {trade.fvu.iloc[-1]:.3f} at "
    f"{trade.l0.iloc[-1]:.1f}; principal directions go from {trade.rotation.iloc[0]:.3f} to {trade.rotation.iloc[-1]:.3f}.",
    caption="Held-out speakers; bars are 95 % intervals over speakers.",
)

# %% tags=["hide-input"]
figures.table(
    trade[["k", "l0", "fvu", "fvu_low", "fvu_high", "rotation", "dead"]].rename(
        columns={
            "l0": "L0 held out",
            "fvu": "FVU",
            "fvu_low": "from",
            "fvu_high": "to",
            "rotation": "FVU, k directions",
            "dead": "dead share",
        }
    ),
    caption=f"The trade-off at {run.focus}. L0 is measured with the learnt threshold, one frame at a time.",
)

# %% [markdown]
# ## Which latents live
#
# A good dictionary has latents for rare things and for common ones, and few that never fire or always do. A
# latent that fires on most frames is not a feature of anything; one that fires on none is wasted.

# %%
rates = trained[run.focus].array("firing.npy")  # (latent,), the share of held-out frames it fires on
alive, always = rates[rates > 0], float((rates > 0.5).mean())

# %% tags=["figure"]
fig, axis = plt.subplots(figsize=(7.2, 3))
axis.hist(np.log10(alive), bins=40, color=figures.BLUE)
axis.set(title="How often latents fire", xlabel="share of frames, powers of ten", ylabel="latents")
figures.show(
    fig,
    alt=f"A histogram of {len(alive):,} living latents; the middle one fires on {np.median(alive):.2%} of the frames.",
    caption=f"Held-out frames at {run.focus}. Not drawn: {len(rates) - len(alive):,} latents that fire on none of them.",
)

# %% tags=["hide-input"]
figures.say(
    f"Of {len(rates):,} latents {1 - len(alive) / len(rates):.1%} are dead on the held-out frames and {always:.2%} fire on more "
    f"than half of them; the median living latent fires on {np.median(alive):.2%}."
)

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That the dictionary learned something*: a random dictionary, or as many principal directions, inside its interval.
# *That it learned enough*: a longer training that lowers FVU by more than the interval is wide. *That its
# directions mean anything*: this page says nothing about that. A low FVU is about re-saying, not about
# understanding, and another seed may find other directions that re-say as well.
# </aside>
#
# ## Checks
#
# Directions have length 1; codes are sparse and never negative; what was saved is what was measured; and every
# validation speaker is unknown to the training.

# %% tags=["checks"]
coder = sae.load(trained[run.focus].path)
rows, voices = recipes.frames_of(run, clips, acts, run.focus)
x = rows.take(np.arange(min(2048, len(rows))))  # (frame, d_in)
with torch.no_grad():
    f = coder.encode(x)  # (frame, d_sae)
assert torch.allclose(coder.W_dec.norm(dim=1), torch.ones(coder.d_sae), atol=1e-5)
assert (f >= 0).all() and (f > 0).sum(dim=1).float().mean() < 4 * run.k
assert torch.equal(f, torch.cat([coder.encode(one) for one in x.split(7)]).detach()) or torch.allclose(
    f, torch.cat([coder.encode(one) for one in x.split(7)]).detach(), atol=1e-3
)

# %% tags=["checks"]
heard = recipes.table(run, clips)
named = heard[heard.speaker != ""]
assert not set(named.speaker[named.split == "train"]) & set(named.speaker[named.split == "validation"])
assert abs(compared.fvu[compared.rival == "the mean"] - 1).max() < 0.1
assert (scores.fvu < compared[compared.rival == "the mean"].fvu.to_numpy()).all()
assert abs(scores.l0 / run.k - 1).max() < 0.25

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(f"{len(trained)} dictionaries of {coder.d_sae} latents, k = {coder.k}, trained on {run.tokens:,} frames each")
print("trade-off at k =", ", ".join(str(k) for k in trade.k), "| rivals:", ", ".join(compared.rival.unique()))

# %% tags=["save"]
findings.save(
    "02_training",
    run.name,
    headline=f"With {run.k} of {coder.d_sae:,} latents a frame, {best.fvu:.1%} to {worst.fvu:.1%} of the variance stays "
    f"unexplained; at {run.focus} as many principal directions leave {at.iloc[1]:.1%}.",
    tables={"dictionaries": scores, "rivals": compared, "trade_off": trade},
    steps=[clips, acts, *trained.values(), *sweep.values()],
)

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# A dictionary re-says a layer with few latents, and the price is on the table, beside what simpler ways would
# pay. Which of its latents mean something is not settled by any number on this page.
#
# Tried and dropped: starting the encoder at full strength, which overshoots when $k$ is large against the width
# (FVU above 1 at the start); scaling it to the first batch costs nothing and saves the first hundred steps.
#
# Back: [1 · What does Whisper's encoder say while it listens?](01_extraction.ipynb)
