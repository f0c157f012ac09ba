# %% [markdown]
# # 5 · Does a feature matter to what Whisper writes?
#
# > A feature matters if Whisper writes something else without it, where it should and nowhere else, and more than
# > without another feature that fires as often; for several phones it does, and one feature alone seldom costs a word.
#
# **You will** put the dictionary in the place of a layer, silence and turn features, and read what Whisper then writes.
#
# **You will learn** to keep the dictionary's error while you edit, and to set every effect beside a matched control.
#
# **You need** the results of notebooks 0 to 2. Where a corpus tells no phones, the part on phones is left out.
#
# **Time** demo 90 s on 2 cores · a few hundred clips through `tiny` 15 min, for steps not yet stored.

# %% tags=["parameters"]
profile = "demo"  # demo: bundled, offline | tiny | small | large | the path of a .toml file of your own
seed = 0  # one seed for everything random here

# %% tags=["setup"]
import pandas as pd

from whisper_sae import (
    causal,
    controls,
    edits,
    erasing,
    faithfulness,
    figures,
    findings,
    hallucination,
    patching,
    profiles,
    recipes,
    steering,
    store,
    targeted,
)
from whisper_sae import figures_of_patching as drawn
from whisper_sae.calibrations import Calibrations

run = profiles.choose(profile)
figures.use_style()

# %% [markdown]
# ## An edit that changes nothing changes nothing
#
# A dictionary says a layer only roughly. Who replaces the layer by what it says changes all that it missed, too, and
# cannot tell which of the two did what. So an edit adds the difference between two codes and keeps the error:
# $x + (f' - f)\,W_{dec}$. Padding is left alone. The first control is the edit that does nothing: every feature of the
# dictionary times one, and the layer as it is. The tokens must be the same, clip by clip.

# %%
clips, acts = store.need(recipes.clips(run, seed)), store.need(recipes.activations(run, seed))
told = targeted.told_in(run, seed)  # a row a phone; empty where no corpus tells any
site = run.focus
some = causal.gathered(run, seed, causal.sites_of(run))  # clips of speakers held out, heard once
heard, coder = some.heard[site], causal.coder_of(run, seed, site)
coded = patching.Coded(heard, coder)

# %% tags=["show-code"]
nothing = {
    "the layer as it is": patching.Change(lambda x, _: x),
    "every feature × 1": coded.edit(edits.scale(dict.fromkeys(range(coder.d_sae), 1.0))),
}
same = {name: tokens == heard.plain for name, tokens in patching.tokens(heard, nothing).items()}

# %% tags=["hide-input"]
kept_as_is = "; ".join(f"{name}: {'all' if one else 'not all'}" for name, one in same.items())
figures.say(f"{len(some.clips)} clips of {len(set(some.speakers))} speakers on whom nothing was trained, edited at {site}. Tokens the same: {kept_as_is}.")  # fmt: skip

# %% [markdown]
# ## Is what Whisper needs still there?
#
# Now the opposite: the dictionary's reconstruction *instead of* the layer, error and all else gone. A small error can
# still hold just what the decoder listens to, so the judge is Whisper: its word error rate (**WER**, after Whisper's
# own spelling), and how much less sure it is of what was said, given the right words before it (**cross-entropy**, nats
# a token, and the divergence from the untouched). *Recovered* is the share of what the mean destroys that stays.
# Rivals say as many numbers a frame; centroids are as many as features.

# %%
spliced = {each: store.make(faithfulness.faithful(run, seed, each)) for each in causal.sites_of(run)}
layers = {each: faithfulness.summary(step, seed) for each, step in spliced.items()}
here = layers[site]

# %% tags=["hide-input"]
shown = here[["way", "numbers", "WER", "more", "more_low", "more_high", "CER", "cross_entropy", "divergence",
              "WER_recovered", "loss_recovered"]]  # fmt: skip
facts = spliced[site].facts
figures.table(
    shown.set_axis(["in its place", "numbers", "WER, %", "more", "from", "to", "CER, %", "cross-entropy", "divergence",
                    "WER recovered, %", "loss recovered, %"], axis=1),
    caption=f"At {site}, {facts['clips']} clips of {facts['speakers']} speakers held out. More: WER above the untouched, "
    "with its 95 % interval, from a bootstrap over speakers on the same clips.",
)  # fmt: skip
wer = here.set_index("way").WER
figures.say(
    f"With the dictionary WER is {wer[faithfulness.ITS]:.1f} %; with as many principal directions "
    f"{wer['principal directions']:.1f} %, with a random dictionary {wer['random dictionary']:.1f} %."
)

# %% tags=["figure"]
kept = [faithfulness.ITS, "principal directions", "random dictionary", faithfulness.UNTOUCHED]
lines = pd.concat([one[one.way.isin(kept)].assign(site=each) for each, one in layers.items()])
fig = figures.with_intervals(lines, "site", "WER", "way")
fig.axes[0].set(title="Word errors with each layer re-said", ylabel="WER, %")
figures.show(
    fig,
    alt="; ".join(f"{row.site}: {row.way} {row.WER:.1f} %" for row in lines.itertuples()),
    caption="Each layer alone is replaced, on valid frames. Bars are 95 % intervals over speakers.",
)  # fmt: skip

# %% [markdown]
# ## Silence a phone's feature
#
# For every phone the feature that finds it best was chosen on the training speakers. It is silenced in clips of other
# speakers. Does the decoder become less sure of **words that hold the phone**, more than of words that do not? One feature of
# many seldom costs a word, so surety comes first: the log-odds of the word, in nats. A large effect may only mean a loud
# feature; so beside it stand features that fire as often and remove as much, and the feature's own codes along
# a **random direction**, as large at the same moments. A phone is found if both the signs over speakers and the
# controls say so, at a false discovery rate of 5 % over all phones.

# %% tags=["show-code"]
table, even, features = pd.DataFrame(), 1.0, None
if len(told):
    features = targeted.measured(run, seed, site)
    table, nobody = targeted.phones(run, seed, features)
    even = controls.evenness(nobody)
found = table[table.q <= 0.05] if len(table) else table

# %% tags=["figure"]
if len(table):
    fig = drawn.beside_controls(table.head(20))
    fig.axes[0].set(title="What words that hold the phone lose, above other words", xlabel="log-odds, nats")
    figures.show(
        fig,
        alt=f"{len(found)} phones found: {', '.join(found.phone)}; effects from {table.effect.min():.2f} to {table.effect.max():.2f}, mean of the controls {table.controls.mean():.2f}.",
        caption=f"The surest 20 of {len(table)} phones; {features.facts['clips']} clips of {features.facts['speakers']} speakers held out; bars are 95 % intervals over those who say both kinds of words.",
    )  # fmt: skip

# %% tags=["hide-input"]
if len(table):
    names = ["phone", "feature", "words", "speakers", "holding", "others", "effect", "controls", "random", "p", "q"]
    figures.table(table[names].head(10), caption="Log-odds lost, in nats, by words that hold the phone and by others.")
    near = table[(table.q > 0.05) & (table.q <= 0.1)].phone.tolist()
    weak = found[found.effect <= 2 * found.random].phone.tolist()
    figures.say(
        f"Of {len(table)} phones {len(found)} are found: {', '.join(found.phone)}. Near, q up to 0.1: {', '.join(near) or 'none'}. "
        f"Their controls lose {found.controls.mean():.2f} on average, the features {found.effect.mean():.2f}. Of the "
        f"{found.random.notna().sum()} of them with a random direction at the same moments, it does at least half as much for "
        f"{', '.join(weak) or 'none'}: there the moment matters as much as the direction. Features that are nobody's: p are even "
        f"(Kolmogorov and Smirnov, {even:.2f})."
    )

# %% [markdown]
# ## Turn it down, off, around
#
# Surety is not yet a word. A model that hears much twice can do without one of its features, and then zero looks like
# nothing; what is *said in the opposite direction* is harder to hear past. That is more than absence: it also says what
# no sound would say, so a control has to go the same way.
#
# Between −2 and 2 times its codes: 0 is silence, 1 changes nothing, below 0 the feature says the opposite of what it
# means. Here the outcome is what is written: words missed, of those that hold the phone above the others.

# %% tags=["figure"]
doses, turned, dose = pd.DataFrame(), pd.DataFrame(), None
if len(table):
    dose = store.make(targeted.dose(run, seed, site))
    doses, turned = targeted.dosed(run, seed, dose), targeted.became(run, seed, dose)
    fig = drawn.doses(doses, dose.facts["phones"])
    most = doses[doses.scale == doses.scale.min()].set_index("phone")
    own, other = most[~most.control].effect, most[most.control].effect
    figures.show(
        fig,
        alt="At the lowest scale: " + "; ".join(f"/{name}/ {own[name]:.0f}, control {other[name]:.0f}" for name in own.index),
        caption=f"The {len(dose.facts['phones'])} surest phones, each beside a matched feature; {dose.facts['clips']} clips of {dose.facts['speakers']} speakers. Dotted: untouched. Bands are 95 % intervals over speakers.",
    )  # fmt: skip

# %% tags=["hide-input"]
if len(doses):
    at = {scale: doses[doses.scale == scale] for scale in (-1.0, 0.0)}
    mine = {scale: one[~one.control].effect.mean() for scale, one in at.items()}
    theirs = {scale: one[one.control].effect.mean() for scale, one in at.items()}
    q = controls.discoveries(at[-1.0][~at[-1.0].control].p)
    figures.say(
        f"Silenced, the features of these {len(dose.facts['phones'])} phones cost {mine[0.0]:.1f} % of the words that hold their phones above others, controls "
        f"{theirs[0.0]:.1f} %; turned around {mine[-1.0]:.1f} %, controls {theirs[-1.0]:.1f} %; in words {(q <= 0.05).sum()} of them are found."
    )  # fmt: skip

# %% tags=["hide-input"]
if len(turned):
    shown = turned[(turned.phones != "") & (turned.wrote != "∅")].head(10)
    figures.table(shown[["phone", "said", "wrote", "phones", "times"]], caption=f"What became what, features turned around (-1); {dose.facts['clips']} clips. Controls: the figure above.")  # fmt: skip

# %% [markdown]
# ## How many features hold a concept?
#
# Take away the features that tell nasals best, from the first on, and let a probe, fitted anew on what is left, ask
# frames of speakers it has not met. Or keep only them. Removed at random they are the control; one direction, the
# difference of the means, or LEACE's, is the rival. Two questions are often taken for one: how many features are *enough*
# to tell a concept, and how many have to go until it is *gone*. Where no phones are told, the concept is the gender of the voice.

# %%
concept = "manner:nasal" if len(told) else "gender"
erased = store.make(erasing.erased(run, seed, site, concept))
left, words = erasing.curves(erased), erasing.words(erased, seed)
rivals = left[left.way.isin(["difference of means removed", "LEACE removed"])].set_index("way").right

# %% tags=["figure"]
ways = ["best removed", "random removed", "best alone", "random alone"]
fig = drawn.erasure(left[left.way.isin(ways)], rivals.to_dict())
fig.axes[0].set(title=f"Reading {concept} from what is left")
wide = left.pivot(index="way", columns="count", values="right")
figures.show(
    fig,
    alt=f"With 64 features removed {wide.loc['best removed', 64]:.2f} is read, at random {wide.loc['random removed', 64]:.2f}; of 4 alone {wide.loc['best alone', 4]:.2f}, at random {wide.loc['random alone', 4]:.2f}.",
    caption=f"{erased.facts['speakers']} speakers the probe has not met; bands are 95 % intervals over them. The dictionary's error stays when features are removed, and is left out when they are kept alone.",
)  # fmt: skip

# %% tags=["hide-input"]
gone = erasing.gone_at(erased, "best removed")
few = f"{gone} features" if gone >= 0 else f"more than {max(erasing.COUNTS)} of {erased.facts['features']} features"
shown = words[["way", "count", "WER", "WER_low", "WER_high", "more", "more_low", "more_high"]]
figures.table(shown, caption=f"What Whisper then writes: WER, %, {erased.facts['clips']} clips, intervals over {words.speakers[0]} speakers.")  # fmt: skip
figures.say(
    f"To bring the probe to chance takes {few}; one direction leaves {rivals.iloc[0]:.2f} (means) and {rivals.iloc[1]:.2f} "
    f"(LEACE). Removing 64 leaves {wide.loc['best removed', 64]:.2f}, at random {wide.loc['random removed', 64]:.2f}."
)

# %% [markdown]
# ## Hallucinations on non-speech
#
# What does Whisper write where nobody speaks? The sounds are the corpora's clips without speech and some that are made
# here. A transcript is *hallucinated* if it has letters or digits outside brackets: `[Music]` has no words. Whether
# there is a transcript depends on a rule, so there are three:
#
# - *greedy*, as everywhere on this page. OpenAI's models suppress the end of text at the beginning, so no transcript
#   can be empty;
# - *empty allowed*, the same without that suppression;
# - *Whisper's rule*: greedy, but discarded where $p(\text{no speech}) > 0.6$ and the mean log-probability is below $-1$
#   (`no_speech_threshold`, `logprob_threshold` of [openai/whisper](https://github.com/openai/whisper)). The demo's
#   model writes an empty transcript for silence and was never trained on the token `<|nospeech|>`.
#
# Can such clips be detected? AUC of non-speech against speech, for probes that have met neither the kind of sound nor
# the speaker. Whisper's own two quantities are the baselines; nothing is fitted for them. *Hallucinated* is the AUC of
# those sounds alone of which words are written though an empty transcript is allowed.
#
# Then the site is moved from speech towards non-speech: along the 16 features that differ most, along the difference of
# the means, and along random vectors of the same length. For each sound the direction is made of all *other* kinds of
# sound and of training speakers. The same change may cost words of speech, so both are measured.

# %%
bench = store.make(hallucination.bench(run, seed, site))
kinds, detector = hallucination.by_kind(bench), hallucination.detected(bench)
steered = hallucination.steered(bench, seed)
rules = [rule for rule in hallucination.RULES if rule in kinds]

# %% tags=["hide-input"]
total = pd.DataFrame([{"kind": "all", "source": "", "sounds": kinds.sounds.sum(), **kinds[rules].sum()}])
shown = pd.concat([total, kinds.head(9)]).fillna({"example": ""})
figures.table(
    shown[["kind", "source", "sounds", *rules, "no_speech", "mean_logprob"]],
    caption="Sounds of each kind of which words are written, by rule; medians of p(no speech) "
    "and of the mean log-probability of the greedy transcript. The most hallucinated kinds.",
)
figures.table(
    detector.drop(columns=["non_speech_n", "speech_n", "speakers"]),
    caption=f"AUC with 95 % intervals, of {bench.facts['sounds']} sounds. {bench.facts['spoken']} clips of speech by "
    f"{bench.facts['speakers']} speakers held out.",
)

# %% tags=["figure"]
if len(steered):
    drawn_rule = steered[steered.rule == rules[-1]]
    fig = drawn.both_sides(drawn_rule)
    fig.axes[0].set(title=f"Hallucinated words against word errors, by rule: {rules[-1]}")
    figures.show(
        fig,
        alt="; ".join(
            f"{row.direction} {row.strength:g}: {row.hallucinated:.0f} %, WER {row.WER:.0f} %"
            for row in drawn_rule[drawn_rule.strength.isin([0.0, 0.2, 0.5])].itertuples()
        ),
        caption="Numbers: strength. Bars are 95 % intervals, over sounds and over speakers.",
    )

# %% tags=["hide-input"]
if len(steered):
    at = ["direction", "strength"]
    moved = steered.pivot(index=at, columns="rule", values="hallucinated")[rules]
    spans = {"fewer, points": "fewer", "WER more, points": "more"}
    for title, name in spans.items():
        ends = drawn_rule.set_index(at)[[name, f"{name}_low", f"{name}_high"]].round(1).astype(str)
        moved[title] = ends.iloc[:, 0] + " (" + ends.iloc[:, 1] + " to " + ends.iloc[:, 2] + ")"
    moved = moved.reset_index()
    moved = moved[(moved.strength > 0) | ~moved.strength.duplicated()]  # the untouched once
    figures.table(
        moved,
        caption=f"Sounds with hallucinated words, %, by rule. By {rules[-1]}: how many points fewer than "
        f"untouched (95 % interval over {drawn_rule.kinds.max()} kinds of sound) and how many points of "
        f"WER more (over {drawn_rule.speakers.max()} speakers).",
    )
else:
    figures.say(f"Nothing can be steered here: {bench.facts['reason']}.")

# %% [markdown]
# ## By hand
#
# One clip, the first in which it makes a difference, and factors of your choice: the transcript as it is, with the dictionary in the layer's place, and edited.

# %% tags=["figure"]
surest = table.feature.tolist()[0] if len(table) else int(coded.rates.argmax())
around = patching.tokens(heard, {"": coded.edit(edits.scale({surest: -1.0}))})[""]
row = next((n for n, tokens in enumerate(around) if tokens != heard.plain[n]), 0)  # the first that is written otherwise
hand = steering.steer(heard.whisper, coder, site, some.sound(row), {surest: -1.0})
figures.show(
    drawn.tracks(hand.tracks, hand.after, hand.frame_seconds),
    alt=f"Feature {surest} peaks at {hand.tracks[surest].max():.1f} and is turned around.",
    caption=f"As it is: “{hand.plain}”. Re-said: “{hand.resaid}”. Edited: “{hand.edited}”.",
)

# %% [markdown]
# <aside class="doubt">
#
# **What would change my mind**
#
# *That the dictionary keeps what matters*: a speech the demo does not have, where rivals come as near.
# *That phones' features carry phones*: p of nobody's features that pile up near 0, or controls that lose as much.
# *That a random direction does less*: it is drawn once for each feature; more draws could bring it nearer.
# *That one direction erases a concept*: it erases what a linear probe reads, and nothing is said of other readers.
#
# </aside>

# %% tags=["checks"]
assert all(same.values()), same
assert here.set_index("way").more[faithfulness.UNTOUCHED] == 0
assert left.right.between(0, 1).all()
assert not len(steered) or steered.fewer[steered.strength == 0].eq(0).all()

# %% tags=["checks"]
calibrated = Calibrations()
if run.name == "demo":
    recovered = here.set_index("way").loss_recovered
    calibrated.at_most("WER of the untouched model, %", wer[faithfulness.UNTOUCHED], 10)
    calibrated.at_most(
        "WER added by the reconstruction, points", wer[faithfulness.ITS] - wer[faithfulness.UNTOUCHED], 5
    )
    calibrated.at_least("loss recovered by the SAE, %", recovered[faithfulness.ITS], 80)
    calibrated.at_least(
        "loss recovered: SAE less random SAE", recovered[faithfulness.ITS] - recovered["random dictionary"], 5
    )
    calibrated.at_least("log-odds lost with the phones' features, nats, mean", table.effect.mean(), 0.1)
    calibrated.at_most("that of their controls, as a share", table.controls.mean() / table.effect.mean(), 0.5)
    gone = wide.loc["random removed", 64] - wide.loc["best removed", 64]
    calibrated.at_least("nasals: accuracy lost by removing the best 64 features, above random 64", gone, 0.02)
calibrated.show()

# %% tags=["nbval-check-output"]
print(f"{len(nothing)} edits that change nothing, on {len(some.clips)} clips: {'the same' if all(same.values()) else 'other'} tokens")  # fmt: skip
print("ways to re-say a layer:", "; ".join(here.way))
print("scales:", ", ".join(f"{scale:g}" for scale in targeted.SCALES), "· sounds:", kinds.sounds.sum())

# %% tags=["save"]
findings.save(
    "05_patching",
    run.name,
    headline=f"Without their features words with {len(found)} of {len(table)} phones are heard less surely, beyond matched controls; "
    f"with the dictionary in the place of {site} WER is {wer[faithfulness.ITS]:.1f} %, untouched {wer[faithfulness.UNTOUCHED]:.1f} %.",
    tables={"faithfulness": pd.concat([one.assign(site=each) for each, one in layers.items()]), "phones": table,
            "doses": doses, "turned": turned, "erasure": left, "erasure-words": words, "sounds": kinds,
            "calibrations": calibrated.table,
            "steering": steered},
    steps=[clips, acts, *spliced.values(), *[features, dose] * (features is not None), erased, bench],
)  # fmt: skip

# %% tags=["checks"]
calibrated.require()  # the table of calibrations is saved by now

# %% [markdown]
# ## What was found, what was dropped
#
# Effects are small one feature at a time: Whisper says most things more than once, and a silenced feature seldom costs
# a word, though it costs surety just where it should. Word errors alone would have found almost nothing at scale 0.
# Cross-entropy was tried before log-odds and dropped: where the decoder is sure it hardly moves, so its mean is that of a
# few words. **Next**, notebook 6: what features mean, asked without touching the model.
