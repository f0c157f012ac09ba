# %% [markdown]
# # 1 · What does Whisper's encoder say while it listens?
#
# > Every 20 ms each layer says a few hundred numbers; where the sound ends it goes on speaking, about nothing.
#
# **You will** read recorded speech as one table of clips, hear one clip while watching a layer respond to it,
# and record what every layer says of every clip.
#
# **You will learn** what padding does to a dictionary, how loud the layers are, what cheaper ways of hearing change, and
# what all frames of a layer have in common.
#
# **You need** nothing; [0 · Can the instrument be trusted?](00_instrument.ipynb) tells what the demo is made of.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 11 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd
import torch

from whisper_sae import cache, profiles
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import padding, pipeline
from whisper_sae.model import whisper_model
from whisper_sae.report import results
from whisper_sae.sae import metrics
from whisper_sae.viz import display
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## Whose voices?
#
# A corpus is a folder of sound files and a table, in one of several layouts. Whatever it calls its columns, here every
# clip has the same ones: what was said, who said it, and — *as recorded in the dataset* — the speaker's gender
# and accent. Each file has been decoded once by now: a broken one was left out, with its reason, and many would have
# stopped us here and not an hour later. Training, validation and test share no **speaker**: a dictionary that has met a voice has an
# unfair idea of it.

# %%
clips = cache.make(pipeline.clips(run, seed))
heard = pipeline.table(run, clips)

# %% tags=["hide-input"]
display.table(
    clip_table.balance(heard, *(run.balance or ("split", "gender"))),
    caption="Clips, speakers and minutes. Speakers, not clips, are what later pages count. The table at the end of the page "
    "tells the corpora apart.",
)
display.say(
    f"From {', '.join(heard.corpus.unique())}: {len(heard):,} clips by {clips.facts['speakers']:,} speakers, "
    f"{clips.facts['minutes']:.1f} minutes; "
    f"half of the clips are shorter than {heard.duration.median():.1f} s."
)
if clip_table.parts_share_speakers(heard):
    display.say(
        "With one or two speakers no part can have its own: training, validation and test share them, and wherever a page says "
        "held-out speakers, it means other clips of the same ones. Nothing here generalises to other people."
    )
if clips.facts["short"]:
    display.say(f"Groups with fewer clips than asked for: {'; '.join(clips.facts['short'])}.")
if clips.facts["rejected"]:
    broken = clips.table("rejected.csv")
    display.table(broken.head(10), caption=f"Left out: {len(broken)} sound files, and why; all are in `rejected.csv`.")

# %% [markdown]
# ## One clip, heard and seen
#
# Whisper does not hear samples. It is given a log-mel spectrogram of a whole window — 30 s in OpenAI's
# models, 8 s in the demo's — and a clip that is shorter is filled up with silence. Two convolutions halve the rate, and
# from there on a **frame** is 20 ms: 30 s are 1,500 of them. We take a clip of some seconds.

# %% tags=["show-code"]
whisper = whisper_model.load(run.model, run.device, precision=run.precision)
sites = [site for site in whisper_model.sites(whisper.config, run.sites) if site.startswith("encoder")]
clip = int((heard.duration - 6).abs().idxmin())
sound = clip_table.samples(heard.path[clip])[: whisper.window]  # (sample,)

# %% [markdown]
# A **site** is a place in the model with a name, such as `encoder.2.resid`: the residual stream, which every
# layer reads and adds to, as layer 2 leaves it. Hooks on as many sites as we like take down what is said
# there in a single pass; with them each frame gets its kind — speech, silence, or padding.

# %% tags=["show-code"]
mels = whisper_model.mel(whisper, [sound])  # (1, mel bin, mel frame)
said = whisper_model.record(whisper, mels, sites)  # {site: (1, frame, width)}
kinds = clip_table.kinds(sound, whisper.samples_a_frame, whisper.positions)  # (frame,)

# %% [markdown]
# Expect vertical bands where the sound changes, at the same instants as in the spectrogram. And look at what
# happens right of the dotted line, where the clip is over.

# %% tags=["figure"]
valid = int((kinds > 0).sum())
shown = min(whisper.positions, valid + 50)  # one second of padding too
seconds = shown * whisper.samples_a_frame / clip_table.RATE
x = said[run.focus][0, :shown].cpu().numpy()  # (frame, width)
fig = display.heard_and_seen(
    sound, clip_table.RATE, mels[0, :, : 2 * shown].cpu().numpy(), x, kinds[:shown], seconds=seconds, site=run.focus
)
display.play(
    fig,
    sound,
    clip_table.RATE,
    alt=f"Waveform, spectrogram and {x.shape[1]} neurons over {seconds:.1f} s: bands change with the sound, and "
    f"after {valid * 0.02:.1f} s, in the padding, they freeze into stripes.",
    caption=f"Press play: the cursor runs over all three. {'“' + heard.text[clip] + '” ' if heard.text[clip] else ''}Neurons "
    "are z-scored: red is more than usual, blue is less. Right of the dotted line lies padding.",
)

# %% [markdown]
# ## Every layer, every clip
#
# Now the same for the whole corpus. What is written to disk are the valid frames only. A window that holds a
# clip of a few seconds is mostly padding, and a dictionary trained on it would learn to say *nothing is here* very
# precisely — so padding is dropped at the door, once, and nothing downstream can meet it. What it would have cost is
# tried below.

# %% tags=["show-code"]
acts = cache.make(pipeline.activations(run, seed))
recorded = store.Activations(acts.path)

# %% tags=["hide-input"]
facts, whole, took = acts.facts, acts.facts["windows"] * acts.facts["positions"], pipeline.seconds_of(run, seed, acts)
display.say(
    f"Whisper computed {whole:,} frames and we keep {facts['frames']:,}: {facts['frames_padding'] / whole:.0%} was padding. "
    f"Of what we keep, {facts['frames_silence'] / facts['frames']:.0%} is silence within or around the speech. "
    f"The pass took {took:.0f} s when it was made, with all that other pages need of it: {facts['frames'] / took:,.0f} "
    "valid frames a second."
    + (" For the figures, a few windows are enough: dictionaries will hear all clips on the fly." * run.on_the_fly)
)
stored = pd.DataFrame({"site": recorded.sites.keys(), "width": recorded.sites.values()})
stored["frames"] = facts["frames"]
stored["MB on disk"] = [
    store.size_of({s: w}, facts["frames"], 0, 0, facts["dtype"]) / 1e6 for s, w in recorded.sites.items()
]
display.table(stored, caption=f"What is on disk, in {facts['dtype']}, {facts['shards']} shards a site.")

# %% [markdown]
# ## And the decoder?
#
# The decoder has no frames. It is given a token and prepares the next one, so its rows are **tokens**. We record it while
# it is *given* the transcript of each clip, whatever it would have written itself (teacher forcing). Because it never
# looks ahead, its row of `<|startoftranscript|>` is the same as if that token had been given alone: one row a clip,
# which knows nothing of any word. The further up, the less should a row depend on the token given, and the more on
# the token to come.

# %% tags=["show-code"]
spoke = None
if whisper.decoder is not None and any(site.startswith("decoder") for site in run.sites):
    spoke = cache.make(pipeline.decoded(run, seed))
    tokens = spoke.table("tokens.csv")  # a row a token: window, position, token, word
    tokens["to_come"] = tokens.groupby("window").token.shift(-1, fill_value="<|endoftext|>")

# %%
depends = pd.DataFrame()
if spoke:
    words = tokens[tokens.word >= 0]
    kinds_of = {"token given": words.token, "token to come": words.to_come}
    kinds_of["chance"] = words.token.sample(frac=1, random_state=seed)
    said_of = {site: store.Activations(spoke.path).rows(site) for site in spoke.facts["sites"]}
    depends = pd.DataFrame(
        [
            {
                "site": site,
                **{
                    name: metrics.share_between(rows.take(words.index.to_numpy()), kind)
                    for name, kind in kinds_of.items()
                },
            }
            for site, rows in said_of.items()
        ]
    )

# %% tags=["hide-input"]
if spoke:
    display.table(
        depends,
        caption=f"Share of the variance between {len(words):,} tokens of words that lies between kinds of tokens. Chance: "
        "the tokens given, shuffled.",
    )
    first, last = depends.iloc[0], depends.iloc[-1]
    display.say(
        f"From {first.site} to {last.site} the token given goes from {first['token given']:.0%} to {last['token given']:.0%}, "
        f"the token to come from {first['token to come']:.0%} to {last['token to come']:.0%}; shuffled tokens reach {last.chance:.0%}."
    )
else:
    display.say("This profile records no decoder.")

# %% [markdown]
# ## How loud is each layer?
#
# The length of an activation says how loud a layer speaks. Because layers add to one stream, expect length to
# grow with depth. The kind of frame matters too, so here we listen to padding as well: eight clips, straight from
# the model.

# %%
few = heard.sample(min(8, len(heard)), random_state=seed)
sounds = [clip_table.samples(path)[: whisper.window] for path in few.path]
frame_kinds = np.stack([clip_table.kinds(s, whisper.samples_a_frame, whisper.positions) for s in sounds])
live = whisper_model.record(whisper, whisper_model.mel(whisper, sounds), sites)
norms = pd.DataFrame(
    [{"site": site, **row} for site in sites for row in metrics.norms(live[site], frame_kinds, clip_table.KINDS)]
)

# %% tags=["figure"]
fig = display.by_kind(norms, "site", "median", "low", "high")
fig.axes[0].set(title="How loud each kind of frame is", ylabel="length of an activation", ylim=(0, None))
low, high = norms["median"].min(), norms["median"].max()
display.show(
    fig,
    alt=f"Median lengths between {low:.1f} and {high:.1f} over {len(sites)} sites, a line each for speech, silence and padding.",
    caption=f"Median length over the frames of {len(few)} clips, with the middle half of the frames as a band.",
)
last = norms[norms.site == sites[-1]].set_index("kind")["median"]
if {"padding", "speech"} <= set(last.index):
    times = last["padding"] / last["speech"]
    display.say(
        f"At {sites[-1]} a frame of padding has {times:.2f} times the length of a frame of speech. "
        "Padding is not a zero that could be overlooked: it speaks, and it would be learnt."
    )
else:
    display.say(f"These clips have frames of {', '.join(last.index)} only: nothing to compare.")

# %% [markdown]
# ## What would padding do to a dictionary?
#
# Notebook 2 trains dictionaries, which say a frame with k latents on average. Here we do it five times at one site, to
# try what would happen if padding were let in. The first learns from all frames that Whisper computes for some clips. It
# should find padding easy to say, with fewer latents than k, and so have more for other frames. So the second has the
# same valid frames in as many steps, and k raised until it may use as many on each. The third keeps k, the fourth sees
# as many frames as the first, and the fifth differs from it by its seed alone.

# %% tags=["show-code"]
trial = cache.make(padding.learnt(run, seed))
learnt = padding.scores(trial)  # a row a dictionary

# %% tags=["hide-input"]
shown = learnt[["dictionary", "k", "frames", "valid", "l0", "fvu", "fvu_low", "fvu_high", "dead"]]
shown.columns = ["learnt from", "k", "frames", "valid", "L0", "FVU", "from", "to", "silent"]
display.table(
    shown,
    caption=f"Dictionaries of {run.focus} on valid frames of {learnt.speakers[0]} held-out speakers. L0: latents that fire "
    "on a frame. FVU: the share of the variance that they leave unexplained, with a 95 % interval over speakers. Silent: "
    "the share of latents that fire on none of these frames.",
)
every, same, *_, one, other = learnt.itertuples()
display.say(
    f"{trial.facts['padding']:.0%} of the frames of these {trial.facts['clips']} clips are padding. With it, {every.l0_padding:.1f} latents "
    f"fire on a frame of padding and {every.l0:.1f} on a valid one. Padding takes {every.firings_on_padding:.0%} of all firings and "
    f"{every.explained_on_padding:.0%} of the variance explained; {every.mostly_padding:.0%} of the {trial.facts['latents']:,} latents fire mostly "
    f"there and {every.dead:.0%} on no valid frame at all, where without padding {same.dead:.0%} do so."
)

# %% tags=["hide-input"]
display.say(
    f"Of valid frames the dictionary that learnt padding too leaves {every.fvu:.1%}. The same valid frames alone, and {same.l0:.1f} latents "
    f"on each, leave {same.fvu:.1%}: with padding the error is {same.beside:.2f} times as large ("
    f"{display.between(same.beside_low, same.beside_high, '.2f')}, over speakers). Two that differ in their seed alone leave {one.fvu:.1%} and {other.fvu:.1%}."
)

# %% [markdown]
# ## What would cheaper ways of hearing change?
#
# Whisper computes padding before we drop it. A profile can ask for less of it: `windows = "packed"` joins clips of a
# speaker until a window is full. It can also ask for cruder numbers, `precision = "bfloat16"`, where the machine
# multiplies them faster. Neither says quite the same, and the table is there to choose by. An error of 10 % means that a
# tenth of the variance of a layer is another than if each clip had been heard alone. Expect packing to matter more, for
# a clip then has neighbours, and Whisper knows where in the window it is. Levels are clamped to 80 dB below the loudest
# point of a clip, packed or not; of a clip longer than a window, each window by its own, as transformers does it.

# %%
others = cache.make(pipeline.other_ways(run, seed))
ways = others.table("other_ways.csv")  # a row a way and site
wide = ways.pivot(index="site", columns="heard", values=["cosine", "error"]).loc[ways.site.unique()]
wide.columns = [f"{way}: {what}" for what, way in wide.columns]

# %% tags=["hide-input"]
display.table(
    wide.reset_index(),
    caption=f"The same frames heard another way, {ways.frames[0]:,} of them. Cosine: mean over frames. Error: squared difference as a "
    "share of the variance.",
)
told = ways[ways.site == run.focus].set_index("heard")
display.say(
    f"Packed, this corpus is {others.facts['packed']:,} windows instead of {others.facts['alone']:,}; at {run.focus} the mean cosine is then "
    f"{told.cosine['packed']:.3f} and the error {told.error['packed']:.1%}, where a dictionary above leaves {one.fvu:.1%}. "
    + (
        f"In bfloat16 they are {told.cosine['bfloat16']:.4f} and {told.error['bfloat16']:.2%}."
        if "bfloat16" in told.index
        else "This machine does not multiply in bfloat16 itself, so that was not tried."
    )
)

# %% [markdown]
# ## What do all frames share?
#
# A dictionary is asked to explain how frames *differ*. Two things make that hard. If the mean of all frames is
# long against the spread around it (γ above 1), a dictionary that does not know the mean wastes its strength on
# it. And if a handful of directions hold most of the variance, an error that looks small may hide everything
# else. Both are read from every stored frame.

# %% tags=["figure"]
known = {site: metrics.moments(recorded.rows(site).chunks()) for site in sites}
shares = {site: metrics.principal_shares(known[site]) for site in sites}  # (direction,), rising to 1
fig = display.curves(shares)
fig.axes[0].set(title="How many directions hold the variance")
fig.axes[0].set(xlabel="principal directions kept", ylabel="share of the variance")
display.show(
    fig,
    alt=f"Rising curves; ten directions hold {min(s[9] for s in shares.values()):.0%} to {max(s[9] for s in shares.values()):.0%} of the variance.",
    caption="How much of the variance of a site lies in its first so many principal directions, over all stored frames.",
)

# %% tags=["hide-input"]
shared = pd.DataFrame(
    {
        "site": sites,
        "γ = |mean| / spread": [known[site].gamma for site in sites],
        "largest neuron's share": [
            float(known[site].covariance.diagonal().max()) / known[site].variance for site in sites
        ],
        "directions for 90 %": [int(np.searchsorted(shares[site], 0.9)) + 1 for site in sites],
    }
)
display.table(shared, caption="What the frames of a site have in common. Shares are of the variance around the mean.")

# %% [markdown]
# So the next notebook starts every dictionary from the mean, measures errors against the *spread* and never
# against the raw length, and sets principal directions beside the dictionary as its first rival.
#
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That padding must be kept out*: a site at which the dictionary that learnt from all frames leaves no more of valid ones
# than the one that had the same valid frames alone, with as many latents on each. One site, one variant and one length
# of training were tried. *That frames are 20 ms*: a click at a known time that peaks in another frame.
# *That silence is silence*: the rule is one of energy, so breath counts as silence and a fan as speech; a
# voice-activity detector that disagrees on many frames would replace it.
# </aside>
#
# ## Checks
#
# What must hold at any profile. First that a hook only listens: a patch that changes nothing changes nothing.

# %% tags=["checks"]
with torch.no_grad(), whisper_model.at(whisper, {site: lambda hidden: hidden for site in sites}):
    touched = whisper.encoder(mels).last_hidden_state
with torch.no_grad():
    assert torch.equal(touched, whisper.encoder(mels).last_hidden_state)
assert not any(module._forward_hooks for module in whisper.encoder.modules())

# %% [markdown]
# Then that the store holds what the model says, to the precision it is stored in, and no padding; and that no
# speaker is on two sides.

# %% tags=["checks"]
windows = acts.table("windows.csv")
number = int((windows.samples - len(sound)).abs().idxmin())  # as long as the one above
again = whisper_model.record(whisper, whisper_model.mel(whisper, [pipeline.sound_of(heard, windows, number)]), sites)
for site in sites if run.windows == "clip" else ():  # among others a clip sounds otherwise
    stored_x = torch.from_numpy(recorded.window(site, number).astype(np.float32))  # (frame, width)
    live_x = again[site][0, : len(stored_x)].cpu()
    assert (stored_x - live_x).norm() < 2e-3 * live_x.norm(), site
assert len(recorded.rows(sites[0])) == (recorded.kinds > 0).sum() == facts["frames"]
assert clip_table.has_valid_split(heard)

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    calibrated.at_least("share of firings spent on padding, where it was let in", every.firings_on_padding, 0.15)
    calibrated.at_least("error on valid frames with padding, times that without", every.fvu / same.fvu, 1.05)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(
    f"{len(heard)} clips, {facts['windows']} windows, {facts['frames']} frames, padding {facts['frames_padding'] / whole:.1%}"
)
print({**recorded.sites, **(spoke.facts["sites"] if spoke else {})})

# %% tags=["save"]
results.save(
    "01_extraction",
    run.name,
    headline=f"{facts['frames']:,} frames of {len(sites)} sites recorded; {facts['frames_padding'] / whole:.0%} of what "
    "Whisper computed was padding, and was left out.",
    tables={
        "padding": learnt,
        "other_ways": ways,
        "decoder": depends,
        "norms": norms,
        "shared": shared,
        "balance": clip_table.balance(heard, "corpus", "split", "gender"),
        "calibrations": calibrated.table,
    },
    steps=[clips, acts, trial, *([spoke] if spoke else [])],
)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# The encoder answers every 20 ms, whether or not there is something to hear, and what it says of padding is about
# as long as what it says of speech. The frames of a site share a mean and some strong directions, in some layers
# a single one. Both will be taken into account.
#
# Tried and dropped: padding among the frames that a dictionary learns from. Weighed and dropped, without a trial: padding
# kept on disk under a mask. The share printed above says how much larger the store would be, every reader would have to
# remember the mask, and who wants to look at padding can have it heard again, as this page did.
#
# Next: [2 · Can a few directions at a time re-say what a layer says?](02_training.ipynb)
