"""Does a phone's feature carry the phone? Ablate it, and see whether words that hold the phone suffer more than others.

    step = store.make(targeted.effects(run, seed, site))
    targeted.phones(run, seed, step).table                      # a row a phone, with its matched controls and its p
    targeted.dosed(store.make(targeted.dose(run, seed, site)))  # some of the features at scales from -2 to 2, in words

Features are chosen by F1 on the training speakers (`phonetics.detection`), effects measured on held-out speakers. One
feature of many seldom costs a word, so the first measure is how much log-odds the decoder loses on each word. For
dose-response curves phones are chosen on the validation speakers and measured on the test speakers.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from whisper_sae.cache import Recipe, Step, make, need
from whisper_sae.causal import controls, edits, losses, patching
from whisper_sae.devices import long_pass
from whisper_sae.experiments import evaluation_clips, feature_index, phone_selectivity, phone_tables, target_phones
from whisper_sae.experiments.phone_tables import digests, phones_of, words_of
from whisper_sae.experiments.pipeline import clips, made_by, table
from whisper_sae.profiles import Profile
from whisper_sae.stats.intervals import LEAST

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""What a feature's codes are multiplied by in a dose-response curve; 1 changes nothing."""

CONTROLS, COVERED = 10, 12
"""Controls of each phone's feature; and how many each should have within the caliper among the ablated features."""

LEAST_WORDS, ALONG_RANDOM = 6, 6
"""Words a phone must have; and of how many features, those that change most, a random direction is tried as well."""

DOSE_CALIPER = 0.3
"""The caliper (`controls.CALIPER`) for the one control of each phone in a dose-response curve."""


def effects(run: Profile, seed: int, site: str, a_speaker: int = 2) -> Recipe:
    """`less.npy` (feature, word), how much log-odds the decoder loses on each word when a feature is ablated (nats);
    `words.csv`, the words; `features.csv`, a row an ablated feature: its number, whether it is `chosen` as the best of
    a phone, its rate, and its size (mean activation times the norm of its decoder direction).

    Ablated are the best feature of each phone that enough words hold; further features, so that each of these has
    COVERED controls within the caliper (`controls.covering`, from all that fire); and, `along` "random", the strongest
    again with a random direction of the same norm in the place of their own.
    """
    chosen = phone_selectivity.detection(run, seed, site)

    def ablate(folder: Path, detected: Step) -> dict:
        some = evaluation_clips.gathered(run, seed, (site,)).fewer(a_speaker, seed=seed)
        heard = some.heard[site]
        coded = patching.Coded(heard, evaluation_clips.coder_of(run, seed, site))
        size = _sizes(coded)
        best = _asked(run, seed, some, _best(detected))
        pool = controls.covering(coded.rates, size, best, COVERED).tolist()
        changes = {("own", feature): coded.edit(edits.silence([feature])) for feature in sorted({*best, *pool})}
        bar = long_pass(f"ablating at {site}")
        words, less = losses.by_word(heard, changes, some.clips.text.tolist(), progress=bar)
        strong = sorted(best, key=lambda feature: -np.abs(less["own", feature]).mean())[:ALONG_RANDOM]
        other = _random_directions(coded.coder.W_dec, seed)
        randoms = {("random", feature): coded.edit(edits.silence([feature]), along=other) for feature in strong}
        less |= losses.by_word(heard, randoms, some.clips.text.tolist(), progress=bar)[1]
        changes |= randoms
        np.save(folder / "less.npy", np.stack([*less.values()]) if less else np.zeros((0, len(words.clip))))
        rows = [
            (along, f, f in best, coded.rates[f], size[f], int(changes[along, f].touched.sum())) for along, f in less
        ]
        columns = ["along", "feature", "chosen", "rate", "size", "clips"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "features.csv", index=False)
        told = {"clip": some.clips["clip"].to_numpy()[words.clip], "place": words.place}
        told |= {"speaker": some.speakers[words.clip], "split": some.clips.split.to_numpy()[words.clip]}
        pd.DataFrame(told | {"word": _word(some.clips.text, words)}).to_csv(folder / "words.csv", index=False)
        runs = sum(int(change.touched.sum()) for change in changes.values())
        return {"clips": len(some.clips), "speakers": len(set(some.speakers)), "features": len(best), "runs": runs}

    return Recipe(
        "effects-on-words", ablate,
        {"seed": seed, "site": site, "a_speaker": a_speaker, "covered": COVERED, "caliper": controls.CALIPER,
         "least": LEAST_WORDS, "phones": digests(run)},
        needs={"detected": chosen}, by=made_by(run, "05"), label=f"effects on words at {site}",
    )  # fmt: skip


def measured(run: Profile, seed: int, site: str) -> Step:
    """`effects`, made, and before it the index and the detectors that choose the features, if they are not there
    yet."""
    make(feature_index.codes(run, seed, site))
    make(phone_selectivity.detection(run, seed, site))
    return make(effects(run, seed, site))


def _best(detected: Step) -> pd.Series:
    """The best feature of each phone that was counted, by phone."""
    told = phone_selectivity.read(detected, "labels.csv")
    return told[told.counted.astype(bool)].set_index("label").feature


def _asked(run: Profile, seed: int, some: evaluation_clips.Gathered, best: pd.Series) -> list[int]:
    """The best features of phones that at least LEAST_WORDS of the words hold."""
    places = [(row, place) for row, said in enumerate(some.clips.text) for place in range(len(said.split()))]
    clip, place = np.array(places).reshape(-1, 2).T
    told, rows = told_in(run, seed), {int(number): row for row, number in enumerate(some.clips["clip"])}
    words = target_phones.Spoken(clip, place, some.speakers[clip])
    holds = target_phones.holding(words, told[told["clip"].isin(rows)], rows)
    return sorted({feature for phone, feature in best.items() if phone in holds and holds[phone].sum() >= LEAST_WORDS})


def _sizes(coded: patching.Coded) -> np.ndarray:
    """What each feature says where it fires: its mean activation times the norm of its direction, (feature,)."""
    mean = np.asarray(coded.codes.sum(axis=0)).ravel() / np.maximum(np.diff(coded.codes.indptr), 1)
    return mean * coded.coder.W_dec.norm(dim=1).cpu().numpy()


def _random_directions(W_dec: torch.Tensor, seed: int) -> torch.Tensor:
    other = torch.randn(W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return other * (W_dec.norm(dim=1) / other.norm(dim=1))[:, None]


def _word(texts: pd.Series, words: losses.Words) -> list[str]:
    said = [text.split() for text in texts]
    return [said[clip][place] for clip, place in zip(words.clip, words.place, strict=True)]


def _holding(run: Profile, seed: int, said: pd.DataFrame) -> tuple[target_phones.Spoken, dict[str, np.ndarray]]:
    """The words of `words.csv`, and which of them hold each phone."""
    clip = pd.factorize(said["clip"])
    words = target_phones.Spoken(clip[0], said.place.to_numpy(), said.speaker.to_numpy())
    told = told_in(run, seed)
    rows = {int(number): row for row, number in enumerate(clip[1])}
    return words, target_phones.holding(words, told[told["clip"].isin(rows)], rows)


class Tested(NamedTuple):
    """Phones whose features were ablated, tested against matched controls."""

    table: pd.DataFrame
    """A row a phone, the surest first: see `phones`."""
    null: np.ndarray
    """p of as many tests of features that are no phone's best, which should be uniform."""
    unmatched: list[str]
    """Phones that are left out because fewer controls than asked for lie within the caliper."""
    each: pd.DataFrame
    """Effect less the mean of the controls, phone × speaker; NaN where a speaker lacks one kind of words."""

    @property
    def imbalance(self) -> pd.Series:
        """The median over phones of |log(target / median of its controls)| of rate, size and rate × size."""
        return controls.imbalance(self._ratios)

    @property
    def _ratios(self) -> pd.DataFrame:
        return self.table[list(RATIOS)].rename(columns=RATIOS)

    @property
    def refusal(self) -> str:
        """Why nothing can be claimed of any phone, in one sentence; "" if it can."""
        if self.table.empty and self.unmatched:
            return f"No matched controls: none of {len(self.unmatched)} phones has enough within the caliper."
        if self.table.empty:
            return f"No phone is held by {LEAST_WORDS} words of at least two held-out speakers."
        return controls.refusal(self._ratios)


RATIOS = {"rate_ratio": "rate", "size_ratio": "size", "mass_ratio": "rate × size"}
"""Columns of `Tested.table`: the target's firing rate, size and rate × size over the median of its controls'."""

COLUMNS = [
    "phone", "feature", "f1", "words", "speakers", "holding", "others", "effect", "low", "high", "controls", "random",
    "p_words", *RATIOS, "p_controls", "p", "q",
]  # fmt: skip


def phones(
    run: Profile, seed: int, step: Step, k: int = CONTROLS, splits: Sequence[str] = evaluation_clips.HELD_OUT
) -> Tested:
    """Every phone with enough words and k matched controls among the ablated features, on the speakers of some splits.

    In the table: `feature` and its F1; `words` that hold the phone and `speakers`; `holding` and `others`, what these
    words lose on average (log-odds, nats); `effect`, the mean over speakers of the difference, with its interval;
    `controls`, that of the k nearest features, and `random`, of a random direction at the same moments; `p_words`, of
    the signs of the speakers' differences; RATIOS; `p_controls`, beyond the controls of all phones (`controls.beyond`);
    p, the greater of the two, and its false discovery rate q.
    """
    known, less, spoken_words = step.table("features.csv"), step.array("less.npy"), words_in(step)
    used = spoken_words.split.isin(splits).to_numpy()
    spoken_words, less = spoken_words[used].reset_index(drop=True), less[:, used]
    words, holds = _holding(run, seed, spoken_words)
    own = known[known.along == "own"].reset_index(drop=True)
    rate, size, every = own.rate.to_numpy(), own["size"].to_numpy(), np.arange(len(own))
    others = np.flatnonzero(~own.chosen.astype(bool))
    lost = {along: less[(known.along == along).to_numpy()] for along in ("own", "random")}
    place = {along: dict(zip(known.feature[known.along == along], range(len(known)), strict=False)) for along in lost}
    detected = phone_selectivity.read(
        need(phone_selectivity.detection(run, seed, step.manifest["params"]["site"])), "labels.csv"
    )
    rng, rows, against, nobody, unmatched, above = np.random.default_rng(seed), [], [], [], [], {}
    for phone in detected[detected.counted.astype(bool)].itertuples():
        holding = holds.get(phone.label)
        if holding is None or holding.sum() < LEAST_WORDS or phone.feature not in place["own"]:
            continue
        each = target_phones.contrast(lost["own"], holding, words.speaker)  # (feature, speaker)
        if each.shape[1] < 2:
            continue
        target = place["own"][phone.feature]
        near = controls.matched(rate, size, target, every, k)
        if len(near) < k:
            unmatched.append(phone.label)
            continue
        mean, mine = each.mean(axis=1), each[target]
        against.append(mean[near])
        above[phone.label] = pd.Series(mine - each[near].mean(axis=0), _speakers(holding, words.speaker))
        for free in rng.permutation(np.intersect1d(near, others)):
            if len(like := controls.matched(rate, size, free, np.setdiff1d(every, target), k)) == k:
                nobody.append((mean[free], mean[like]))
                break
        at_random = place["random"].get(phone.feature)
        random = np.full(len(spoken_words), np.nan) if at_random is None else lost["random"][at_random]
        half, ratios = controls.reach(mine), controls.balance(rate, size, target, near)
        rows.append({
            "phone": phone.label, "feature": phone.feature, "f1": phone.f1, "words": int(holding.sum()),
            "speakers": each.shape[1], "holding": lost["own"][target][holding].mean(),
            "others": lost["own"][target][~holding].mean(), "effect": mean[target], "low": mean[target] - half,
            "high": mean[target] + half, "controls": mean[near].mean(),
            "random": target_phones.contrast(random, holding, words.speaker).mean(), "p_words": controls.flipped(mine),
        } | {column: ratios[name] for column, name in RATIOS.items()})  # fmt: skip
    if not rows:
        return Tested(pd.DataFrame(columns=COLUMNS), np.zeros(0), unmatched, pd.DataFrame())
    found = pd.DataFrame(rows)
    found["p_controls"] = controls.beyond(found.effect, np.stack(against)).p
    found["p"] = np.maximum(found.p_words, found.p_controls)
    found["q"] = controls.discoveries(found.p)
    null = [np.array(part) for part in zip(*nobody, strict=True)]
    null = controls.beyond(*null).p if null else np.zeros(0)
    table = found.sort_values(["q", "effect"], ascending=[True, False], ignore_index=True)
    return Tested(table[COLUMNS], null, unmatched, pd.DataFrame(above).T)


def _speakers(holding: np.ndarray, speaker: np.ndarray) -> list[str]:
    """The speakers of `targets.contrast`, in its order."""
    return [name for name in np.unique(speaker[holding]) if (~holding[speaker == name]).any()]


def by_controls(run: Profile, seed: int, step: Step, ks: Sequence[int] = (6, 8, CONTROLS, COVERED)) -> pd.DataFrame:
    """How the result depends on the number of controls: a row a k, with the phones tested and left out, the median
    |log ratio| of rate and of rate × size, phones with p ≤ 0.05, at a false discovery rate of 5 % and of 10 %, and the
    mean effect of features and of controls. p is no smaller than 1 / (1 + k · phones)."""
    rows = []
    for k in ks:
        tested = phones(run, seed, step, k)
        p, q, apart = tested.table.p, tested.table.q, tested.imbalance
        rows.append({
            "k": k, "phones": len(p), "left out": len(tested.unmatched), "rate": apart["rate"],
            "rate × size": apart["rate × size"], "p ≤ 0.05": int((p <= 0.05).sum()), "q ≤ 0.05": int((q <= 0.05).sum()),
            "q ≤ 0.1": int((q <= 0.1).sum()), "effect": tested.table.effect.mean(),
            "controls": tested.table.controls.mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


class Overall(NamedTuple):
    """All phones at once: effect less controls (nats), the mean over speakers of each one's mean over phones."""

    mean: float
    low: float
    high: float
    p: float
    speakers: int


def overall(tested: Tested) -> Overall:
    """Do the phones' features cost the words that hold them more than matched controls do, on average? A speaker's mean
    is over the phones that the speaker's words hold and lack: frequent phones weigh more than in a mean of phones."""
    each = tested.each.mean(axis=0).to_numpy(float)
    mean, half = float(np.nanmean(each)), controls.reach(each[np.isfinite(each)])
    return Overall(mean, mean - half, mean + half, controls.flipped(each), int(np.isfinite(each).sum()))


# -------------------------------------------------------------------------------------------------- in words


def dose(run: Profile, seed: int, site: str, most: int = 3, a_speaker: int = 6) -> Recipe:
    """`wrote.csv`: what is written of each clip of the test speakers with the feature of each of the `most` phones that
    are surest on the validation speakers, and with one matched control of each, at each of SCALES: phone, control,
    feature, scale, clip, speaker, said, wrote, normalised; unedited clips too. `words.csv`: the words of the
    transcripts, and which of the normalised ones (`first` up to `last`) each became. `features.csv`: a row a phone, its
    feature, its control, and RATIOS. Phones without a feature within DOSE_CALIPER are passed over; without any phone or
    test speaker there are no tables, and `phones` in the facts is empty."""
    begun = effects(run, seed, site)

    def turn(folder: Path, measured: Step, detected: Step) -> dict:
        surest = phones(run, seed, measured, splits=("validation",)).table
        chosen_on = set(words_in(measured).query("split == 'validation'").speaker)
        some = evaluation_clips.gathered(run, seed, (site,))
        test = (some.clips.split == "test").to_numpy()
        if surest.empty or not test.any():
            return {"clips": int(test.sum()), "speakers": 0, "phones": [], "chosen_on": len(chosen_on)}
        some = some.at(test).fewer(a_speaker, seed=seed)
        assert not chosen_on & set(some.speakers), "phones were chosen on speakers that they are measured on"
        coded = patching.Coded(some.heard[site], evaluation_clips.coder_of(run, seed, site))
        pairs = _pairs(surest, coded, _best(detected), most)
        asked = [(row.phone, control, int(row.control if control else row.feature)) for row in pairs.itertuples()
                 for control in (False, True)]  # fmt: skip
        changes = {
            (*one, scale): coded.edit(edits.scale({one[2]: scale})) for one in asked for scale in SCALES if scale != 1
        }
        wrote = patching.write(some.heard[site], changes, progress=long_pass(f"doses at {site}"))
        wrote |= {(*one, 1.0): patching.said(some.heard[site], some.heard[site].plain) for one in asked}
        said, words = _normalised(some)
        words.to_csv(folder / "words.csv", index=False)
        told = [
            pd.DataFrame({"phone": key[0], "control": key[1], "feature": key[2], "scale": key[3],
                          "clip": some.clips["clip"], "speaker": some.speakers, "said": said,
                          "wrote": [some.scorer.tidy(text) for text in texts]})
            for key, texts in wrote.items()
        ]  # fmt: skip
        if told:
            pd.concat(told, ignore_index=True).to_csv(folder / "wrote.csv", index=False)
        pairs.to_csv(folder / "features.csv", index=False)
        return {"clips": len(some.clips), "speakers": len(set(some.speakers)), "phones": pairs.phone.tolist(),
                "chosen_on": len(chosen_on)}  # fmt: skip

    params = {"seed": seed, "site": site, "most": most, "a_speaker": a_speaker, "scales": SCALES, "controls": CONTROLS}
    return Recipe(
        "dose-response", turn, params | {"caliper": DOSE_CALIPER, "phones": digests(run)},
        needs={"measured": begun, "detected": begun.needs["detected"]}, by=made_by(run, "05"),
        label=f"dose and response at {site}",
    )  # fmt: skip


def _pairs(surest: pd.DataFrame, coded: patching.Coded, best: pd.Series, most: int) -> pd.DataFrame:
    """The first `most` of some phones that have a control within DOSE_CALIPER, each with its own: the nearest feature
    that is no phone's best and no other's control. Columns phone, feature, control, RATIOS."""
    rate, size = coded.rates, _sizes(coded)
    free, rows = np.setdiff1d(np.flatnonzero(rate), best), []
    for row in surest.itertuples():
        near = controls.matched(rate, size, row.feature, free, 1, DOSE_CALIPER)
        if len(near) and len(rows) < most:
            free, ratios = np.setdiff1d(free, near), controls.balance(rate, size, row.feature, near)
            rows.append((row.phone, row.feature, int(near[0]), *(ratios[name] for name in RATIOS.values())))
    return pd.DataFrame(rows, columns=["phone", "feature", "control", *RATIOS])


def _normalised(some: evaluation_clips.Gathered) -> tuple[list[str], pd.DataFrame]:
    """The normalised transcript of each clip, and every word of the transcripts with the span of normalised words that
    it became: clip, place, speaker, word, first, last."""
    texts, rows, begin = [], [], 0
    for clip, speaker, text in zip(some.clips["clip"], some.speakers, some.clips.text, strict=True):
        said, spans = target_phones.spans(text, some.scorer.tidy)
        texts.append(said)
        words = enumerate(zip(text.split(), begin + spans, strict=True))
        rows += [(clip, place, speaker, word, *map(int, span)) for place, (word, span) in words]
        begin += len(said.split())
    return texts, pd.DataFrame(rows, columns=["clip", "place", "speaker", "word", "first", "last"])


def dosed(run: Profile, seed: int, step: Step) -> pd.DataFrame:
    """A row a phone, scale and `control` or not: the share of words missed, in percent, above the unedited, of words
    that hold the phone (`holding`) and of others (`others`); and `effect`, the mean of their difference over speakers,
    with `low` and `high`, the number of `words` and `speakers`, and p of the signs. Fewer than `intervals.LEAST`
    speakers have neither interval nor p."""
    told, spoken_words = _wrote(step), words_in(step)
    words, holds = _holding(run, seed, spoken_words)
    rows = []
    for (phone, control, scale), part in told.groupby(["phone", "control", "scale"], sort=False):
        plain = told[(told.scale == 1) & (told.phone == phone) & (told.control == control)]
        more = 100.0 * (_missed(part, spoken_words).astype(float) - _missed(plain, spoken_words))
        holding = holds.get(phone, np.zeros(len(spoken_words), dtype=bool))
        each = target_phones.contrast(more, holding, words.speaker)
        if not len(each):
            continue
        half, p = controls.reach(each), controls.flipped(each) if len(each) >= LEAST else np.nan
        rows.append((phone, bool(control), int(part.feature.iloc[0]), scale, more[holding].mean(),
                     more[~holding].mean(), each.mean(), each.mean() - half, each.mean() + half,
                     int(holding.sum()), len(each), p))  # fmt: skip
    columns = ["phone", "control", "feature", "scale", "holding", "others", "effect", "low", "high", "words",
               "speakers", "p"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).sort_values(["phone", "control", "scale"], ignore_index=True)


def _missed(part: pd.DataFrame, words: pd.DataFrame) -> np.ndarray:
    """Which words of the transcripts are not among what was written of each clip: (word,) bool."""
    lengths = [len(said.split()) for said in part.said]
    clip, place = np.repeat(np.arange(len(part)), lengths), np.concatenate([np.arange(n) for n in lengths])
    missed = target_phones.missed(part.said.tolist(), part.wrote.tolist(), target_phones.Spoken(clip, place, clip))
    return target_phones.within(missed, words["first"].to_numpy(), words["last"].to_numpy())


def words_in(step: Step) -> pd.DataFrame:
    """The words of `effects` or `dose`, as they are in the transcripts."""
    return step.table("words.csv", dtype={"speaker": str, "word": str}, keep_default_na=False)


def told_in(run: Profile, seed: int) -> pd.DataFrame:
    """A row a phone of the run's clips with the word that it is in: `spoken.phones_of`, `spoken.in_words`. Empty where
    no corpus has any."""
    every = table(run, need(clips(run, seed)))
    found = phones_of(run, every)
    return phone_tables.in_words(found, words_of(run, every), every.text) if (found.word_index < 0).any() else found


def lacking(run: Profile, seed: int) -> str:
    """Why no phone's feature can be tested by ablation, in one sentence; "" if it can."""
    told = told_in(run, seed)
    every = table(run, need(clips(run, seed)))
    who = every.speaker.where(every.speaker != "", every.id)
    if told.empty:
        return "No corpus of this profile has phones with times, so no phone's feature can be tested."
    if not (told.word_index >= 0).any():
        return "The corpora have phones but no words with times, so it is not known which words hold which phone."
    aligned = every.loc[sorted(set(told["clip"][told.word_index >= 0]))]
    held_out = aligned.split.isin(evaluation_clips.HELD_OUT)
    counts = [int(who[aligned.index][side].nunique()) for side in (~held_out, held_out)]
    if min(counts) < LEAST:
        return (
            f"{counts[0]} training and {counts[1]} held-out speakers have phones with times; {LEAST} of each are the "
            "least with whom features can be chosen on the former and tested on the latter."
        )
    return ""


def became(run: Profile, seed: int, step: Step, scale: float = -1.0) -> pd.DataFrame:
    """Which words and phones became which when the phones' features were scaled so: see `targets.turned`, and `phone`.
    What is missed without an edit is left out."""
    told = _wrote(step)
    told = told[~told.control.astype(bool)]
    known = told_in(run, seed)
    spelling = target_phones.spellings(known.assign(word=known.word.str.lower().str.strip(string.punctuation)))
    parts = [target_phones.turned([], [], spelling).assign(phone="")]
    for phone, part in told.groupby("phone", sort=False):
        plain, now = (part[part.scale == at].wrote.tolist() for at in (1.0, scale))
        parts.append(target_phones.turned(plain, now, spelling).assign(phone=phone))
    return pd.concat(parts, ignore_index=True).sort_values("times", ascending=False, kind="stable", ignore_index=True)


def _wrote(step: Step) -> pd.DataFrame:
    texts = {name: str for name in ("phone", "speaker", "said", "wrote")}
    return step.table("wrote.csv", dtype=texts, keep_default_na=False)
