# %% [markdown]
# # 1 · What does Whisper's encoder say while it listens?
#
# > Every 20 ms each layer says a few hundred numbers; where the sound ends it goes on speaking, about nothing.
#
# **You will** read recorded speech as one table of clips, hear one clip while watching a layer respond to it,
# and record what every layer says of every clip.
#
# **You will learn** why no frame of padding may reach a dictionary, how loud the layers are, and what all
# frames of a layer have in common.
#
# **You need** nothing; [0 · Can the instrument be trusted?](00_instrument.ipynb) tells what the demo is made of.
#
# **Time** demo 25 s on 2 cores · two hours of speech through `tiny` 5 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd
import torch

from whisper_sae import activations, figures, findings, measure, model, profiles, recipes, speech, store

run = profiles.choose(profile)
figures.use_style()

# %% [markdown]
# ## Whose voices?
#
# A corpus is a folder of sound files and a table, in one of several layouts. Whatever it calls its columns, here every
# clip has the same ones: what was said, who said it, and — *as recorded in the dataset* — the speaker's gender
# and accent. Each file has been decoded once by now: a broken one was left out, with its reason, and many would have
# stopped us here and not an hour later. Training, validation and test share no **speaker**: a dictionary that has met a voice has an
# unfair idea of it.

# %%
clips = store.make(recipes.clips(run, seed))
heard = recipes.table(run, clips)

# %% tags=["hide-input"]
figures.table(
    speech.balance(heard, *(run.balance or ("split", "gender"))),
    caption="Clips, speakers and minutes. Speakers, not clips, are what later pages count. The table at the end of the page "
    "tells the corpora apart.",
)

# %% tags=["hide-input"]
figures.say(
    f"From {', '.join(heard.corpus.unique())}: {len(heard):,} clips by {clips.facts['speakers']:,} speakers, "
    f"{clips.facts['minutes']:.1f} minutes; "
    f"half of the clips are shorter than {heard.duration.median():.1f} s."
)
if clips.facts["short"]:
    figures.say(f"Groups with fewer clips than asked for: {'; '.join(clips.facts['short'])}.")
if clips.facts["rejected"]:
    broken = clips.table("rejected.csv")
    figures.table(broken.head(10), caption=f"Left out: {len(broken)} sound files, and why; all are in `rejected.csv`.")

# %% [markdown]
# ## One clip, heard and seen
#
# Whisper does not hear samples. It is given a log-mel spectrogram of a whole window — 30 s in OpenAI's
# models, 8 s in the demo's — and a clip that is shorter is filled up with silence. Two convolutions halve the rate, and
# from there on a **frame** is 20 ms: 30 s are 1,500 of them. We take a clip of some seconds.

# %% tags=["show-code"]
whisper = model.load(run.model, run.device, precision=run.precision)
sites = [site for site in model.sites(whisper.config, run.sites) if site.startswith("encoder")]
clip = int((heard.duration - 6).abs().idxmin())
sound = speech.samples(heard.path[clip])[: whisper.window]  # (sample,)

# %% [markdown]
# A **site** is a place in the model with a name, such as `encoder.2.resid`: the residual stream, which every
# layer reads and adds to, as layer 2 leaves it. Hooks on as many sites as we like take down what is said
# there in a single pass; with them each frame gets its kind — speech, silence, or padding.

# %% tags=["show-code"]
mels = model.mel(whisper, [sound])  # (1, mel bin, mel frame)
said = model.record(whisper, mels, sites)  # {site: (1, frame, width)}
kinds = speech.kinds(sound, whisper.samples_a_frame, whisper.positions)  # (frame,)

# %% [markdown]
# Expect vertical bands where the sound changes, at the same instants as in the spectrogram. And look at what
# happens right of the dotted line, where the clip is over.

# %% tags=["figure"]
valid = int((kinds > 0).sum())
shown = min(whisper.positions, valid + 50)  # one second of padding too
seconds = shown * whisper.samples_a_frame / speech.RATE
x = said[run.focus][0, :shown].cpu().numpy()  # (frame, width)
fig = figures.heard_and_seen(
    sound, speech.RATE, mels[0, :, : 2 * shown].cpu().numpy(), x, kinds[:shown], seconds=seconds, site=run.focus
)
figures.play(
    fig,
    sound,
    speech.RATE,
    alt=f"Waveform, spectrogram and {x.shape[1]} neurons over {seconds:.1f} s: bands change with the sound, and "
    f"after {valid * 0.02:.1f} s, in the padding, they freeze into stripes.",
    caption=f"Press play: the cursor runs over all three. {'“' + heard.text[clip] + '” ' if heard.text[clip] else ''}Neurons "
    "are z-scored: red is more than usual, blue is less. Right of the dotted line lies padding.",
)

# %% [markdown]
# ## Every layer, every clip
#
# Now the same for the whole corpus. What is written to disk are the valid frames only. A window that holds a
# clip of a few seconds is mostly padding, and a dictionary trained on it would spend its latents on saying
# *nothing is here* very precisely — so padding is dropped at the door, once, and nothing downstream can meet it.

# %% tags=["show-code"]
acts = store.make(recipes.activations(run, seed))
recorded = activations.Activations(acts.path)

# %% tags=["hide-input"]
facts, whole = acts.facts, acts.facts["windows"] * acts.facts["positions"]
figures.say(
    f"Whisper computed {whole:,} frames and we keep {facts['frames']:,}: {facts['frames_padding'] / whole:.0%} was padding. "
    f"Of what we keep, {facts['frames_silence'] / facts['frames']:.0%} is silence within or around the speech. "
    f"The pass took {acts.manifest['seconds']:.0f} s when it was made: {facts['frames'] / acts.manifest['seconds']:,.0f} "
    "valid frames a second."
)

# %% tags=["hide-input"]
size = np.dtype(facts["dtype"]).itemsize
stored = pd.DataFrame({"site": recorded.sites.keys(), "width": recorded.sites.values()})
stored["frames"] = facts["frames"]
stored["MB on disk"] = stored.width * facts["frames"] * size / 1e6
figures.table(stored, caption=f"What is on disk, in {facts['dtype']}, {facts['shards']} shards a site.")

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
    spoke = store.make(recipes.decoded(run, seed))
    tokens = spoke.table("tokens.csv")  # a row a token: window, position, token, word
    tokens["to_come"] = tokens.groupby("window").token.shift(-1, fill_value="<|endoftext|>")

# %%
depends = pd.DataFrame()
if spoke:
    words = tokens[tokens.word >= 0]
    kinds_of = {"token given": words.token, "token to come": words.to_come}
    kinds_of["chance"] = words.token.sample(frac=1, random_state=seed)
    said_of = {site: activations.Activations(spoke.path).rows(site) for site in spoke.facts["sites"]}
    depends = pd.DataFrame(
        [
            {
                "site": site,
                **{
                    name: measure.share_between(rows.take(words.index.to_numpy()), kind)
                    for name, kind in kinds_of.items()
                },
            }
            for site, rows in said_of.items()
        ]
    )

# %% tags=["hide-input"]
if spoke:
    figures.table(
        depends,
        caption=f"Share of the variance between {len(words):,} tokens of words that lies between kinds of tokens. Chance: "
        "the tokens given, shuffled.",
    )
    first, last = depends.iloc[0], depends.iloc[-1]
    figures.say(
        f"From {first.site} to {last.site} the token given goes from {first['token given']:.0%} to {last['token given']:.0%}, "
        f"the token to come from {first['token to come']:.0%} to {last['token to come']:.0%}; shuffled tokens reach {last.chance:.0%}."
    )
else:
    figures.say("This profile records no decoder.")

# %% [markdown]
# ## How loud is each layer?
#
# The length of an activation says how loud a layer speaks. Because layers add to one stream, expect length to
# grow with depth. The kind of frame matters too, so this is the one place where we listen to padding: eight
# clips, straight from the model.

# %%
few = heard.sample(min(8, len(heard)), random_state=seed)
sounds = [speech.samples(path)[: whisper.window] for path in few.path]
frame_kinds = np.stack([speech.kinds(s, whisper.samples_a_frame, whisper.positions) for s in sounds])

# %%
live = model.record(whisper, model.mel(whisper, sounds), sites)
norms = pd.DataFrame(
    [{"site": site, **row} for site in sites for row in measure.norms(live[site], frame_kinds, speech.KINDS)]
)

# %% tags=["figure"]
fig = figures.by_kind(norms, "site", "median", "low", "high")
fig.axes[0].set(title="How loud each kind of frame is", ylabel="length of an activation", ylim=(0, None))
low, high = norms["median"].min(), norms["median"].max()
figures.show(
    fig,
    alt=f"Median lengths between {low:.1f} and {high:.1f} over {len(sites)} sites, a line each for speech, silence and padding.",
    caption=f"Median length over the frames of {len(few)} clips, with the middle half of the frames as a band.",
)

# %% tags=["hide-input"]
last = norms[norms.site == sites[-1]].set_index("kind")["median"]
figures.say(
    f"At {sites[-1]} a frame of padding has {last['padding'] / last['speech']:.2f} times the length of a frame of speech. "
    "Padding is not a zero that could be overlooked: it speaks, and it would be learnt."
)

# %% [markdown]
# ## What do all frames share?
#
# A dictionary is asked to explain how frames *differ*. Two things make that hard. If the mean of all frames is
# long against the spread around it (γ above 1), a dictionary that does not know the mean wastes its strength on
# it. And if a handful of directions hold most of the variance, an error that looks small may hide everything
# else. Both are read from every stored frame.

# %%
known = {site: measure.moments(recorded.rows(site).chunks()) for site in sites}
shares = {site: measure.principal_shares(known[site]) for site in sites}  # (direction,), rising to 1

# %% tags=["figure"]
fig = figures.curves(shares)
fig.axes[0].set(title="How many directions hold the variance")
fig.axes[0].set(xlabel="principal directions kept", ylabel="share of the variance")
figures.show(
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
figures.table(shared, caption="What the frames of a site have in common. Shares are of the variance around the mean.")

# %% [markdown]
# So the next notebook starts every dictionary from the mean, measures errors against the *spread* and never
# against the raw length, and sets principal directions beside the dictionary as its first rival.
#
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That padding must be kept out*: a dictionary trained with padding that spends no more latents on it, and
# loses nothing on speech. *That frames are 20 ms*: a click at a known time that peaks in another frame.
# *That silence is silence*: the rule is one of energy, so breath counts as silence and a fan as speech; a
# voice-activity detector that disagrees on many frames would replace it.
# </aside>
#
# ## Checks
#
# What must hold at any profile. First that a hook only listens: a patch that changes nothing changes nothing.

# %% tags=["checks"]
with torch.no_grad(), model.at(whisper, {site: lambda hidden: hidden for site in sites}):
    touched = whisper.encoder(mels).last_hidden_state
with torch.no_grad():
    assert torch.equal(touched, whisper.encoder(mels).last_hidden_state)
assert not any(module._forward_hooks for module in whisper.encoder.modules())

# %% [markdown]
# Then that the store holds what the model says, to the precision it is stored in, and no padding; and that no
# speaker is on two sides.

# %% tags=["checks"]
windows = acts.table("windows.csv")
number = int(np.flatnonzero(windows["clip"] == clip)[0])
again = model.record(whisper, model.mel(whisper, [recipes.sound_of(heard, windows, number)]), sites)
for site in sites if run.windows == "clip" else ():  # among others a clip sounds otherwise
    stored_x = torch.from_numpy(recorded.window(site, number).astype(np.float32))  # (frame, width)
    live_x = again[site][0, : len(stored_x)].cpu()
    assert (stored_x - live_x).norm() < 2e-3 * live_x.norm(), site
assert len(recorded.rows(sites[0])) == (recorded.kinds > 0).sum() == facts["frames"]
assert (heard[heard.speaker != ""].groupby("speaker").split.nunique() == 1).all()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(
    f"{len(heard)} clips, {facts['windows']} windows, {facts['frames']} frames, padding {facts['frames_padding'] / whole:.1%}"
)
print({**recorded.sites, **(spoke.facts["sites"] if spoke else {})})

# %% tags=["save"]
findings.save(
    "01_extraction",
    run.name,
    headline=f"{facts['frames']:,} frames of {len(sites)} sites recorded; {facts['frames_padding'] / whole:.0%} of what "
    "Whisper computed was padding, and was left out.",
    tables={
        "decoder": depends,
        "norms": norms,
        "shared": shared,
        "balance": speech.balance(heard, "corpus", "split", "gender"),
    },
    steps=[clips, acts, *([spoke] if spoke else [])],
)

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# The encoder answers every 20 ms, whether or not there is something to hear, and what it says of padding is about
# as long as what it says of speech. The frames of a site share a mean and some strong directions, in some layers
# a single one. Both will be taken into account.
#
# Weighed and dropped, without a trial: padding frames kept on disk under a mask. The share printed above says how
# much larger the store would be, and every reader would have to remember the mask.
#
# Next: [2 · Can a few directions at a time re-say what a layer says?](02_training.ipynb)
