"""Does a phone's feature carry the phone? Silence it, and see whether words that hold the phone are hurt, and only
they.

    step = store.make(targeted.effects(run, seed, site))
    targeted.phones(step)                                       # a row a phone, with its controls and its p
    targeted.dosed(store.make(targeted.dose(run, seed, site)))  # the same features at scales from -2 to 2, in words

Features are chosen by F1 on the training speakers (`phonetics.detection`), effects measured on speakers held out. One
feature of many seldom costs a word, so what is measured first is how much less sure the decoder is of each word.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae import causal, controls, edits, losses, meaning, patching, phonetics, targets
from whisper_sae.profiles import Profile
from whisper_sae.recipes import clips, made_by, table
from whisper_sae.spoken import digests, phones_of
from whisper_sae.store import Recipe, Step, make, need

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""What a feature's codes are multiplied by in a dose-response curve; 1 changes nothing."""

CONTROLS, POOL, LEAST, ALONG_RANDOM = 15, 25, 6, 10
"""Controls of each phone; features drawn at random of all, from which they are; words a phone must have; and
of how many features, those that change most, a random direction is tried as well."""


def effects(run: Profile, seed: int, site: str, a_speaker: int = 3) -> Recipe:
    """`less.npy` (feature, word), how much less sure the decoder is of each word when a feature is silenced (log-odds,
    nats); `words.csv`, the words; `features.csv`, a row a silenced feature: its number, what it is there for, its rate,
    and its size (mean where it fires, times the length of its direction).

    Silenced are the best feature of each phone that enough words hold; POOL features drawn at random of all that fire
    (`pool`); and, `along` "random", the strongest of them again with a random direction of the same length in the place
    of their own.
    """
    chosen = phonetics.detection(run, seed, site)

    def silence(folder: Path, detected: Step) -> dict:
        some = causal.gathered(run, seed, causal.sites_of(run)).fewer(a_speaker, seed=seed)
        heard = some.heard[site]
        coded = patching.Coded(heard, causal.coder_of(run, seed, site))
        best = _asked(run, seed, some, _best(detected))
        rng = np.random.default_rng(seed)
        pool = np.sort(rng.permutation(np.flatnonzero(coded.rates > 2e-4))[:POOL]).tolist()
        changes = {("own", feature): coded.edit(edits.silence([feature])) for feature in sorted({*best, *pool})}
        bar = lambda batches: tqdm(batches, desc=f"silencing at {site}", unit=" batches")  # noqa: E731
        words, less = losses.by_word(heard, changes, some.clips.text.tolist(), progress=bar)
        strong = sorted(best, key=lambda feature: -np.abs(less["own", feature]).mean())[:ALONG_RANDOM]
        other = _random_directions(coded.coder.W_dec, seed)
        randoms = {("random", feature): coded.edit(edits.silence([feature]), along=other) for feature in strong}
        less |= losses.by_word(heard, randoms, some.clips.text.tolist(), progress=bar)[1]
        changes |= randoms
        np.save(folder / "less.npy", np.stack(list(less.values())))
        strength = np.asarray(coded.codes.sum(axis=0)).ravel() / np.maximum(np.diff(coded.codes.indptr), 1)
        size = strength * coded.coder.W_dec.norm(dim=1).numpy()
        rows = [
            (along, f, f in best, f in pool, coded.rates[f], size[f], int(changes[along, f].touched.sum()))
            for along, f in less
        ]
        columns = ["along", "feature", "chosen", "pool", "rate", "size", "clips"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "features.csv", index=False)
        told = {"clip": some.clips["clip"].to_numpy()[words.clip], "place": words.place}
        told |= {"speaker": some.speakers[words.clip], "word": _word(some.clips.text, words)}
        pd.DataFrame(told).to_csv(folder / "words.csv", index=False)
        runs = sum(int(change.touched.sum()) for change in changes.values())
        return {"clips": len(some.clips), "speakers": len(set(some.speakers)), "features": len(best), "runs": runs}

    return Recipe(
        "effects-on-words", silence,
        {"seed": seed, "site": site, "a_speaker": a_speaker, "pool": POOL, "least": LEAST, "phones": digests(run)},
        needs={"detected": chosen}, by=made_by(run, "05"), label=f"effects on words at {site}",
        code=(*causal.CODE, losses, edits, targets, effects, _best, _asked, _random_directions, causal.gathered,
              causal.drawn),
    )  # fmt: skip


def measured(run: Profile, seed: int, site: str) -> Step:
    """`effects`, made, and before it the index and the detectors that choose the features, if they are not there
    yet."""
    make(meaning.codes(run, seed, site))
    make(phonetics.detection(run, seed, site))
    return make(effects(run, seed, site))


def _best(detected: Step) -> pd.Series:
    """The best feature of each phone that was counted, by phone."""
    told = phonetics.read(detected, "labels.csv")
    return told[told.counted.astype(bool)].set_index("label").feature


def _asked(run: Profile, seed: int, some: causal.Gathered, best: pd.Series) -> list[int]:
    """The best features of phones that at least LEAST of the words hold."""
    places = [(row, place) for row, said in enumerate(some.clips.text) for place in range(len(said.split()))]
    clip, place = np.array(places).T
    told, rows = told_in(run, seed), {int(number): row for row, number in enumerate(some.clips["clip"])}
    words = targets.Spoken(clip, place, some.speakers[clip])
    holds = targets.holding(words, told[told["clip"].isin(rows)], rows)
    return sorted({feature for phone, feature in best.items() if phone in holds and holds[phone].sum() >= LEAST})


def _random_directions(W_dec: torch.Tensor, seed: int) -> torch.Tensor:
    other = torch.randn(W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return other * (W_dec.norm(dim=1) / other.norm(dim=1))[:, None]


def _word(texts: pd.Series, words: losses.Words) -> list[str]:
    said = [text.split() for text in texts]
    return [said[clip][place] for clip, place in zip(words.clip, words.place, strict=True)]


def _holding(run: Profile, seed: int, spoken: pd.DataFrame) -> tuple[targets.Spoken, dict[str, np.ndarray]]:
    """The words of `words.csv`, and which of them hold each phone."""
    clip = pd.factorize(spoken["clip"])
    words = targets.Spoken(clip[0], spoken.place.to_numpy(), spoken.speaker.to_numpy())
    told = told_in(run, seed)
    rows = {int(number): row for row, number in enumerate(clip[1])}
    return words, targets.holding(words, told[told["clip"].isin(rows)], rows)


def phones(run: Profile, seed: int, step: Step) -> tuple[pd.DataFrame, np.ndarray]:
    """A row a phone, the surest first, and p of as many tests of features that are nobody's, which should be even.

    `feature` and its F1; `words` that hold the phone and `speakers`; `holding` and `others`, what these words lose on
    average (log-odds, nats); `effect`, the mean over speakers of the difference, with its interval; `controls`, that of
    matched features, and `random`, of a random direction at the same moments; `p_words`, of the signs of the speakers'
    differences; `p_controls`, beyond the controls of all phones; p, the greater of the two, and its false discovery
    rate q.
    """
    spoken = step.table("words.csv", dtype={"speaker": str, "word": str}, keep_default_na=False)
    known, less = step.table("features.csv"), step.array("less.npy")
    words, holds = _holding(run, seed, spoken)
    own = known[known.along == "own"].reset_index(drop=True)
    pool = np.flatnonzero(own.pool.astype(bool))
    lost = {along: less[(known.along == along).to_numpy()] for along in ("own", "random")}
    place = {along: dict(zip(part.feature, range(len(part)), strict=True)) for along, part in known.groupby("along")}
    detected = phonetics.read(need(phonetics.detection(run, seed, step.manifest["params"]["site"])), "labels.csv")
    rng, rows, against, nobody = np.random.default_rng(seed), [], [], []
    for phone in detected[detected.counted.astype(bool)].itertuples():
        holding = holds.get(phone.label)
        if holding is None or holding.sum() < LEAST:
            continue
        each = targets.contrast(lost["own"], holding, words.speaker)  # (feature, speaker)
        if each.shape[1] < 2:
            continue
        target = place["own"][phone.feature]
        matched = controls.matched(own.rate.to_numpy(), own["size"].to_numpy(), target, pool, CONTROLS, rng)
        mean = each.mean(axis=1)
        against.append(mean[matched])
        free = rng.choice(pool)
        near = controls.matched(own.rate.to_numpy(), own["size"].to_numpy(), free, pool, CONTROLS, rng)
        nobody.append((mean[free], mean[near]))
        mine, at_random = each[target], place.get("random", {}).get(phone.feature)
        random = np.full(len(spoken), np.nan) if at_random is None else lost["random"][at_random]
        half = controls.reach(mine)
        rows.append({
            "phone": phone.label, "feature": phone.feature, "f1": phone.f1, "words": int(holding.sum()),
            "speakers": each.shape[1], "holding": lost["own"][target][holding].mean(),
            "others": lost["own"][target][~holding].mean(), "effect": mean[target], "low": mean[target] - half,
            "high": mean[target] + half, "controls": mean[matched].mean(),
            "random": targets.contrast(random, holding, words.speaker).mean(), "p_words": controls.flipped(mine),
        })  # fmt: skip
    found = pd.DataFrame(rows)
    judged = controls.beyond(found.effect, np.stack(against))
    found["p_controls"] = judged.p
    found["p"] = np.maximum(found.p_words, found.p_controls)
    found["q"] = controls.discoveries(found.p)
    null = controls.beyond([effect for effect, _ in nobody], np.stack([others for _, others in nobody])).p
    return found.sort_values(["q", "effect"], ascending=[True, False], ignore_index=True), null


# -------------------------------------------------------------------------------------------------- in words


def dose(run: Profile, seed: int, site: str, most: int = 4, a_speaker: int = 3) -> Recipe:
    """`wrote.csv`: what is written of each clip with the feature of each of the `most` surest phones, and of one
    matched control of each, at each of SCALES: phone, control, feature, scale, clip, said, wrote. Untouched clips are
    there too."""
    begun = effects(run, seed, site, a_speaker)

    def turn(folder: Path, measured: Step, detected: Step) -> dict:
        some = causal.gathered(run, seed, causal.sites_of(run)).fewer(a_speaker, seed=seed)
        coded = patching.Coded(some.heard[site], causal.coder_of(run, seed, site))
        surest = phones(run, seed, measured)[0].head(most)
        asked, rng = [], np.random.default_rng(seed)
        own = measured.table("features.csv").query("along == 'own'").reset_index(drop=True)
        pool = np.flatnonzero(own.pool.astype(bool) & ~own.chosen.astype(bool))
        for row in surest.itertuples():
            target = int(own.index[own.feature == row.feature][0])
            other = controls.matched(own.rate.to_numpy(), own["size"].to_numpy(), target, pool, 1, rng)[0]
            asked += [(row.phone, False, row.feature), (row.phone, True, int(own.feature[other]))]
        changes = {
            (*one, scale): coded.edit(edits.scale({one[2]: scale})) for one in asked for scale in SCALES if scale != 1
        }
        bar = lambda batches: tqdm(batches, desc=f"doses at {site}", unit=" batches")  # noqa: E731
        wrote = patching.write(some.heard[site], changes, progress=bar)
        wrote |= {(*one, 1.0): patching.said(some.heard[site], some.heard[site].plain) for one in asked}
        said = [some.scorer.tidy(text) if len(some.scorer.tidy(text).split()) == len(text.split()) else text
                for text in some.clips.text]  # fmt: skip
        told = [
            pd.DataFrame({"phone": key[0], "control": key[1], "feature": key[2], "scale": key[3],
                          "clip": some.clips["clip"], "speaker": some.speakers, "said": said,
                          "wrote": [some.scorer.tidy(text) for text in texts]})
            for key, texts in wrote.items()
        ]  # fmt: skip
        pd.concat(told, ignore_index=True).to_csv(folder / "wrote.csv", index=False)
        return {"clips": len(some.clips), "speakers": len(set(some.speakers)), "phones": surest.phone.tolist()}

    return Recipe(
        "dose-response", turn, {"seed": seed, "site": site, "most": most, "scales": SCALES, "phones":
        digests(run)}, needs={"measured": begun, "detected": begun.needs["detected"]}, by=made_by(run, "05"),
        code=(*causal.CODE, edits, controls, targets, dose, phones, _holding), label=f"dose and response at {site}",
    )  # fmt: skip


def dosed(run: Profile, seed: int, step: Step) -> pd.DataFrame:
    """A row a phone, scale and `control` or not: the share of words missed, in percent, above the untouched, of words
    that hold the phone (`holding`) and of others (`others`); and `effect`, the mean of their difference over speakers,
    with `low` and `high` and the number of `words` and `speakers`."""
    told, spoken = _wrote(step), None
    rows = []
    for (phone, control, scale), part in told.groupby(["phone", "control", "scale"], sort=False):
        if spoken is None:
            places = [(clip, place, who, word) for clip, who, said in zip(part["clip"], part.speaker, part.said,
            strict=True)
                      for place, word in enumerate(said.split())]  # fmt: skip
            spoken = pd.DataFrame(places, columns=["clip", "place", "speaker", "word"])
            words, holds = _holding(run, seed, spoken)
            plain = told[(told.scale == 1) & (told.phone == phone) & (told.control == control)].wrote.tolist()
            before = targets.missed(part.said.tolist(), plain, words)
        more = 100.0 * (targets.missed(part.said.tolist(), part.wrote.tolist(), words).astype(float) - before)
        each = targets.contrast(more, holds[phone], words.speaker)
        half = controls.reach(each)
        rows.append((phone, bool(control), int(part.feature.iloc[0]), scale, more[holds[phone]].mean(),
                     more[~holds[phone]].mean(), each.mean(), each.mean() - half, each.mean() + half,
                     int(holds[phone].sum()), len(each), controls.flipped(each)))  # fmt: skip
    columns = [
        "phone",
        "control",
        "feature",
        "scale",
        "holding",
        "others",
        "effect",
        "low",
        "high",
        "words",
        "speakers",
        "p",
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(["phone", "control", "scale"], ignore_index=True)


def told_in(run: Profile, seed: int) -> pd.DataFrame:
    """A row a phone of the run's clips, `spoken.phones_of`; empty where no corpus tells any."""
    return phones_of(run, table(run, need(clips(run, seed))))


def became(run: Profile, seed: int, step: Step, scale: float = -1.0) -> pd.DataFrame:
    """Which words and phones became which when the phones' features were scaled so: see `targets.turned`, and `phone`.
    What is missed untouched is left out."""
    told = _wrote(step)
    told = told[~told.control.astype(bool)]
    spelling = targets.spellings(told_in(run, seed))
    parts = []
    for phone, part in told.groupby("phone", sort=False):
        plain, now = (part[part.scale == at].wrote.tolist() for at in (1.0, scale))
        parts.append(targets.turned(plain, now, spelling).assign(phone=phone))
    return pd.concat(parts, ignore_index=True).sort_values("times", ascending=False, kind="stable", ignore_index=True)


def _wrote(step: Step) -> pd.DataFrame:
    texts = {name: str for name in ("phone", "speaker", "said", "wrote")}
    return step.table("wrote.csv", dtype=texts, keep_default_na=False)
