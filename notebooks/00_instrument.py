# %% [markdown]
# # 0 · Can the instrument be trusted?
#
# > A corpus whose truth is known, and a model that hears it: what is planted can be read, what is null cannot.
#
# **You will** hear the voices, check the phone times against the sound, count the model's word errors, and read
# phones and labels off its layers with straight lines.
#
# **You will learn** what later pages may take for granted, and what a method that works has to find — and not find.
#
# **You need** nothing. On other profiles this page shows as much as their corpus and model can tell.
#
# **Time** demo 1 min on 2 cores · two hours of speech through `tiny` 20 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import numpy as np
import pandas as pd

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table, nonspeech, speaker_labels
from whisper_sae.experiments import phone_tables, pipeline, sanity_checks, speaker_probes
from whisper_sae.model import whisper_model
from whisper_sae.report import results
from whisper_sae.stats import intervals, probes
from whisper_sae.viz import display
from whisper_sae.viz.calibrations import Calibrations

run = profiles.choose(profile)
display.use_style()
print(f"profile {run.name}, seed {seed}")

# %% [markdown]
# ## Who speaks
#
# In the demo, nobody: the bundled voices are a synthesiser's. Gender is a setting of it that moves pitch and vocal tract, accent
# is its table of phones. That is what makes them an instrument. In recorded speech a method can find something
# without anyone knowing whether it is there; here everything that is there was put there. The same voices
# never speak in two splits, and no sentence is said in two.

# %%
clips = cache.make(pipeline.clips(run, seed))
heard = pipeline.table(run, clips)
transcribed, silent = nonspeech.is_transcribed(heard), nonspeech.is_nonspeech(heard)
speaking = heard[transcribed]

# %% tags=["hide-input"]
chosen = speaker_labels.choose(heard)
labels = list(chosen.values)  # those that group speakers
voices = speaking[speaking.speaker != ""].drop_duplicates("speaker")
if {"accent", "gender"} <= set(labels):
    known = chosen.values.loc[voices.index]
    across = known.groupby(["accent", "gender"]).size().unstack(fill_value=0).reset_index()
    display.table(across, caption="Speakers of each accent and gender, as recorded in the dataset.")
caption = "Which labels of speakers these pages ask about, and what is left out and why."
display.table(chosen.report, caption=caption)
display.say(
    f"{len(speaking):,} clips of transcribed speech by {voices.speaker.nunique()} speakers, {speaking.duration.sum() / 60:.0f} minutes; "
    f"{silent.sum():,} clips without speech; of {(~transcribed & ~silent).sum():,} clips the transcript is not known."
)
if silent.any():
    quiet = heard.assign(why=nonspeech.reasons(heard), kind=nonspeech.class_of(heard))[silent]
    quiet["kind"] = quiet.kind.replace("", np.nan)  # no class is none
    counts = quiet.groupby(["corpus", "why"]).agg(clips=("id", "size"), classes=("kind", "nunique"))
    display.table(counts.reset_index(), caption="Clips taken for non-speech, and why.")

# %% tags=["hide-input"]
some = voices if len(voices) else heard
turns = [some[some.gender == gender].groupby("accent").head(1) for gender in sorted(set(some.gender))]
each = pd.concat([group.iloc[turn :: len(turns)] for turn, group in enumerate(turns)]).head(6)
names = each.accent.where(each.accent != "", each.speaker.where(each.speaker != "", each.id))
display.voices(
    [
        (f"{name}, {row.gender}: “{row.text}”".replace(", : “”", ""), clip_table.samples(row.path))
        for name, row in zip(names, each.itertuples(), strict=True)
    ],
    clip_table.RATE,
    caption="Speakers of different accents and genders, or clips where no speaker is named.",
)

# %% [markdown]
# ## When each phone sounds
#
# The demo's synthesiser told when it began each phone. Press play and watch the cursor cross the lines: a stop begins
# with its burst, a fricative with its hiss. A file of times can be wrong by a constant and nobody would see it in a table,
# so listen, and then look at the next figure.

# %%
told = phone_tables.phones_of(run, heard)  # a row a phone: clip, start, end, phone; empty where a corpus tells none
whisper = whisper_model.load(run.model, run.device)

# %% tags=["figure"]
if len(told):
    clip = min(told["clip"].unique(), key=lambda number: (heard.split[number] != "test", number))
    sound, here = clip_table.samples(heard.path[clip]), told[told["clip"] == clip]
    mel = whisper_model.mel(whisper, [sound])[0, :, : -(-len(sound) // 160)].cpu().numpy()  # (mel bin, mel frame)
    alt = f"{here.word_index.nunique()} words over a waveform, {len(here)} phones over a spectrogram that changes where they begin."
    caption = f"“{heard.text[clip]}”: words above, phones below, each line where one begins."
    display.play(display.spoken(sound, clip_table.RATE, mel, here), sound, clip_table.RATE, alt=alt, caption=caption)

# %% [markdown]
# If the times are true, the spectrum changes *at* the lines more than anywhere near them. Averaged over many
# boundaries, each kind of phone should peak at zero; moments drawn at random must show no peak.

# %%
known = told[told["clip"].isin(speaking.sample(min(len(speaking), 120), random_state=seed).index)]
if len(known):
    change = sanity_checks.change_at_phones(whisper, heard, known, seed)  # (manner, offset), in steps of 10 ms
    change = change.loc[
        [kind for kind in ("stop", "fricative", "nasal", "vowel", "phone", "chance") if kind in change.index]
    ]

# %% tags=["figure"]
if len(known):
    fig = display.around(dict(change.iterrows()), 10 * (change.columns.to_numpy() - 8))
    fig.axes[0].set(title="The sound changes where the table says", xlabel="ms from the start of a phone")
    fig.axes[0].set(ylabel="change of the log-mel", ylim=(0, None))
    alt = "Peaks: " + ", ".join(
        f"{kind} at {10 * at - 80} ms" for kind, at in change.idxmax(axis=1).items() if kind != "chance"
    )
    caption = f"Mean change over {len(known):,} boundaries of {known['clip'].nunique()} clips, in steps of 10 ms."
    display.show(
        fig,
        alt=f"{alt}; chance lies between {change.loc['chance'].min():.2f} and {change.loc['chance'].max():.2f}.",
        caption=caption,
    )

# %% [markdown]
# ## What is planted, and what is null
#
# In the demo:
#
# | label | relates to |
# |---|---|
# | `gender` | pitch, pitch range, the synthesiser's variant, the length of the vocal tract |
# | `accent` | phones, the qualities of vowels, some rhythm |
# | `mic` | `tilt_db` alone, what the microphone takes from the high frequencies: *near* and *far*, a **confounded label** |
# | `null_label` | nothing; drawn by lot, as often in every group, a **null label** |
#
# A method that finds `null_label` is broken. One that finds `mic` should say *spectral tilt* and not *microphone*. What
# the labels do to four plain measurements of the sound:

# %% tags=["hide-input"]
plain = [name for name in ("f0_hz", "tilt_db", "level_db", "rate_wpm") if name in heard]
if labels and plain:
    display.table(clip_table.means_by(speaking, labels, plain)[["label", "group", *plain]], caption="Means over clips.")

# %% [markdown]
# ## Does the model hear?
#
# A model that transcribes badly would make every later page about a bad model. So here it transcribes every
# clip, and we count **word errors** on the speakers and sentences that no training has met. Where a profile's
# model has no decoder, there is nothing to count.
#
# All transcripts of the project are decoded with the same settings: greedy (no beams, no fallback to
# higher temperatures), without timestamps, in the language of the clip, and cut where a transcript
# repeats itself. Timestamps or beams would change some words. Reference and transcript are normalised
# as OpenAI does before they are compared (Radford et al. 2022, appendix C).

# %% tags=["show-code"]
wrote, wer = pd.DataFrame(), pd.DataFrame()
if whisper.tokenizer is not None:
    transcripts = cache.make(sanity_checks.transcripts(run, seed))
    wrote = transcripts.table("transcripts.csv", dtype={"id": str}).merge(heard.drop(columns="text"), on="id")
counted = len(wrote) > 0 and bool(((wrote.split != "train") & (wrote.words > 0)).any())

# %% tags=["hide-input"]
if not counted:
    display.say("No held-out clip has a transcript (or the model has no decoder), so no word errors are counted.")
else:
    spoken_in = sanity_checks.decoded_languages(run, whisper, speaking, wrote)
    display.table(spoken_in, caption="Clips with a transcript: their language, and how they are decoded.")
    for caution in sanity_checks.language_cautions(run, whisper, speaking):
        display.say(caution)
    if digits := transcripts.facts["digit_strings"]:
        display.say(
            f"The references of {digits:,} clips are strings of digits. They are compared digit by "
            "digit, since the normaliser would join each to one number."
        )

# %% tags=["hide-input"]
if counted:
    held = wrote[(wrote.split != "train") & (wrote.words > 0)]
    quiet = wrote[wrote.id.isin(heard.id[silent])]
    asked = chosen.report.label[chosen.report.asked == "yes"]
    groups = [sanity_checks.word_errors(wrote, by) for by in ["split", "corpus", *asked]]
    wer = pd.concat([sanity_checks.word_errors(held), *groups])
    kept = wer[(wer.speakers >= intervals.LEAST) | (wer.by == "")]
    shown = kept.assign(WER=100 * kept.WER, WER_low=100 * kept.WER_low, WER_high=100 * kept.WER_high)
    shown.columns = ["by", "group", "speakers", "clips", "words", "WER %", "from", "to"]
    display.table(
        shown,
        caption="Word errors of all held-out speakers, then of everyone by group, within a corpus where "
        f"there are several; 95 % intervals over speakers. {len(wer) - len(kept)} groups of fewer than "
        f"{intervals.LEAST} speakers are in the CSV.",
    )

# %% tags=["hide-input"]
if counted:
    all_held = wer.iloc[0]
    display.say(
        f"Held-out word error rate {all_held.WER:.1%} ({display.between(all_held.WER_low, all_held.WER_high)}, {all_held.speakers} "
        f"speakers, {all_held.words} words). In {sum(map(nonspeech.has_words, quiet.heard))} of {len(quiet)} clips without "
        "speech words are written (hallucinations; notebook 5 tells how Whisper itself decides)."
    )
    wrong = held[held.errors > 0].sort_values("errors", ascending=False, kind="stable").head(8)
    display.table(wrong[["said", "heard", "errors"]], caption="Where it goes wrong most.")

# %% [markdown]
# ## Are phones in its layers?
#
# Nobody told the model about phones (the demo's was told for a while which *word* sounds when; see its card). If it hears by them, a straight line should read them off a frame: a
# **linear probe**, fitted on the training speakers, asked about all others. It must beat three rivals: the commonest
# phone, said every time; the log-mel spectrogram, alone or with its surroundings; and the model's **untrained twin**,
# whose architecture is the same and whose weights are random. Every input gets the best of four strengths of
# regularisation, so that no rival loses for want of tuning.

# %% tags=["show-code"]
acts = cache.make(pipeline.activations(run, seed))
rates = pd.DataFrame()
if sanity_checks.speakers_apart(heard, told):
    cache.make(pipeline.activations(pipeline.twin(run), seed))
    probe = cache.make(sanity_checks.phone_probe(run, seed))
    read = probe.table("read.csv")  # input, site, speaker, right: the share of this speaker's frames
    rates = probes.summary(read, ["input", "site"])

# %% tags=["figure"]
if len(rates):
    layers = rates[rates.input.isin(["trained", "untrained"])]
    fig = display.with_intervals(layers, "site", "right", by="input")
    display.levels(fig, {f"{row.input}: {row.site}": row.right for row in rates.drop(layers.index).itertuples()})
    fig.axes[0].set(title="Phones, read by a straight line", ylabel="frames read right")
    alt = "; ".join(f"{row.input} {row.site} {row.right:.2f}" for row in rates.itertuples())
    display.show(
        fig,
        alt=alt,
        caption="Mean over speakers that no probe has met, with 95 % intervals; grey: rivals without a network.",
    )

# %% tags=["hide-input"]
if len(rates):
    one = read.assign(name=read.input + " " + read.site).pivot(index="speaker", columns="name", values="right")
    best = layers[layers.input == "trained"].set_index("site").right.idxmax()
    mel_name = one.filter(like="log-mel").mean().idxmax()  # the stronger of the two
    ours, mel, twin = one[f"trained {best}"], one[mel_name], one[f"untrained {best}"]
    ahead = [
        f"{100 * m:.1f} points ({display.between(100 * a, 100 * b, '.1f')})"
        for m, a, b in map(probes.interval, (ours - mel, ours - twin))
    ]
    display.say(
        f"Of {probe.facts['phones']} phones, {best} has {ours.mean():.1%} read right, {mel_name} "
        f"{mel.mean():.1%}, the untrained twin {twin.mean():.1%}. Speaker by "
        f"speaker the model is ahead of log-mel by {ahead[0]} and of its twin by {ahead[1]}."
    )

# %% [markdown]
# ## Who is speaking?
#
# Now the voice instead of the word: the mean of a clip's frames, and a probe that has never met the speaker. Gender
# and accent should be read above chance, since they were planted; `mic` too, because a dull sound can be heard; and
# `null_label` **must not** be. One trap lies here: where a label is balanced within every group, leaving out a single speaker
# leaves its likes with mostly the *other* label, and a probe that knows nothing falls below chance. So in fitting, the
# labels of every such group weigh the same. Where speakers come from several corpora, the corpus is the group, and the
# score is the mean of scores within corpora: a probe that knows the corpus alone is at chance. Every probe gets the
# best of three strengths of regularisation, chosen on speakers that are neither fitted nor scored.

# %%
others = {"gender": ["accent"], "accent": ["gender"], "mic": ["gender", "accent"], "null_label": ["gender", "accent"]}
stored = heard.loc[acts.table("windows.csv")["clip"].unique()]  # all of them, unless training is on the fly
asked, refused = sanity_checks.askable(stored, others)
labelled = cache.make(sanity_checks.label_probe(run, seed, asked))
named = labelled.table("read.csv")  # label, site, speaker, told, stratum, right
voice = speaker_probes.compared(named, ["label", "site"])  # balanced accuracy
voice.columns = [name.replace("balanced", "right") for name in voice]

# %% tags=["figure"]
if len(voice):
    fig = display.with_intervals(voice, "site", "right", by="label")
    display.levels(fig, {f"chance: {', '.join(part.label.unique())}": level for level, part in voice.groupby("chance")})
    fig.axes[0].set(title="Labels, read off the mean of a clip", ylabel="balanced accuracy", ylim=(0, 1.03))
    alt = "; ".join(f"{row.label} at {row.site} {row.right:.2f}" for row in voice.itertuples())
    caption = "Mean over speakers, each unheard by the probe that is asked, with 95 % intervals; grey: chance."
    display.show(fig, alt=alt, caption=caption)

# %% tags=["hide-input"]
at = voice[voice.site == run.focus].set_index("label")
each = [
    f"{n} {r.right:.1%} ({display.between(r.right_low, r.right_high)}, chance {r.chance:.1%})" for n, r in at.iterrows()
]
display.say(
    f"At {run.focus}: {'; '.join(each) or 'no label has two speakers of each kind'}. That a label can be read does not "
    "say that the model uses it."
)
for name, why in refused.items():
    display.say(f"No probe of {name}: {why}.")

# %% [markdown]
# <aside class="doubt"><strong>What would change my mind</strong>
#
# *That the times are true*: a detector of boundaries made by someone else that disagrees by more than a frame.
# *That the model hears*: word errors that grow when the words keep and the voices change; the table by group is the first
# place to look. *That phones are in its layers*: a probe on shuffled phones that does as well, or a probe on
# log-mel with more surroundings that catches up. *That the null is null*: a study that finds it twice.
# </aside>
#
# ## Checks
#
# What must hold: no speaker and no sentence on two sides; phones inside their clips; the same voices in every table.

# %% tags=["checks"]
assert clip_table.has_valid_split(speaking)
assert (told.end.to_numpy() <= heard.duration.to_numpy()[told["clip"]] + 1e-3).all()
assert set(named.speaker) <= set(heard.speaker)

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    assert (speaking.groupby("text").split.nunique() == 1).all()
    calibrated.at_most("word error rate of held-out speakers", all_held.WER, 0.10)
    calibrated.at_least("phones read: best layer less log-mel", (ours - mel).mean(), 0.10)
    calibrated.at_least("phones read: best layer less randomly initialised model", (ours - twin).mean(), 0.10)
    calibrated.at_most("null label read, away from chance", abs(at.right["null_label"] - 0.5), 0.25)
    for name, least in (("gender", 0.2), ("mic", 0.2), ("accent", 0.1)):
        calibrated.at_least(f"{name} read, above chance", at.right[name] - at.chance[name], least)
calibrated.show()

# %% [markdown]
# These facts are the same on every machine, and a test compares them.

# %% tags=["nbval-check-output"]
print(
    f"{len(heard)} clips, {len(speaking)} of speech by {speaking.speaker.nunique()} speakers; {len(told)} phones, {told.phone.nunique()} kinds"
)
print("labels asked about:", ", ".join(asked))

# %% tags=["save"]
told_by = [f"{all_held.WER:.1%} of held-out words wrong"] if len(wer) else []
told_by += (
    [f"phones {ours.mean():.0%} from {best}, {mel.mean():.0%} from log-mel, {twin.mean():.0%} from the twin"]
    if len(rates)
    else []
)
told_by += [f"{label} {row.right:.0%} (chance {row.chance:.0%})" for label, row in at.iterrows()]
tables = {"word_errors": wer, "labels": voice, "phones": rates, "calibrations": calibrated.table}
steps = [clips, acts, labelled, *([transcripts] if len(wrote) else []), *([probe] if len(rates) else [])]
results.save(
    "00_instrument",
    run.name,
    headline="; ".join(told_by or ["No words, phones or labels to ask about"]) + ".",
    tables=tables,
    steps=steps,
)

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What we found, what we dropped, what is next
#
# The instrument says what it should, and nothing where there is nothing. Its figures are about a synthesiser
# and a model that has heard nothing else; what they calibrate is the method, and the method is what later pages use
# on recorded speech.
#
# Tried and dropped: one regularisation for all probes. It favoured whichever input had the most convenient scale. And
# leaving out one speaker at a time, for the trap told above.
#
# Next: [1 · What does Whisper's encoder say while it listens?](01_extraction.ipynb)
