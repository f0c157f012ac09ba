"""How many features of a dictionary hold a concept? Remove the best ones, and ask a probe, and Whisper.

    step = store.make(erasing.erased(run, seed, site, "gender"))        # of voices
    step = store.make(erasing.erased(run, seed, site, "manner:nasal"))  # of phones
    erasing.curves(step), erasing.words(step)

`concept` picks one that the corpora of a run have on both sides of the split, if there is any. What is recorded as
gender is a setting of a voice in the demo, and a label of a corpus elsewhere; see `data/README.md`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.cache import Recipe, Step
from whisper_sae.causal import controls, edits, erasure, patching
from whisper_sae.devices import long_pass
from whisper_sae.experiments import evaluation_clips, phone_selectivity, sae_comparison
from whisper_sae.experiments.pipeline import made_by, recorded, table
from whisper_sae.model import scoring
from whisper_sae.profiles import Profile
from whisper_sae.stats import probes

COUNTS, IN_WORDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256), (4, 16, 64, 256)
"""How many features are taken away or kept before a probe is asked, and before Whisper is."""

ORDERS = ("best", "matched", "random")
"""Features in the order in which they are removed: the best first; for each of the best MATCHED another one with nearly
its firing rate and rate × size, that is none of them; and at random of all that fire, unmatched."""

MATCHED = 64
"""So many of the best features have a matched control each."""


def erased(run: Profile, seed: int, site: str, label: str, frames: int = 8000, most: int = 40) -> Recipe:
    """`read.csv`: how well the two commonest values of a label are read off frames of held-out speakers, a row a way,
    count and speaker; `words.csv`: the errors of the transcripts of at most `most` clips when as many are ablated, or
    alone are kept, a row a clip;
    `controls.csv`: a row a count, rate, size and rate × size of the best features, summed, over those of their matched
    and of the random ones.

    Ways: the best features removed, as many matched ones, as many at random; the best kept alone, as many matched ones
    alone; and for comparison the difference of means, and LEACE, removed. A probe is fitted on what is left each time.
    """
    heard = recorded(run, seed, site)
    needs = {"clips": heard.needs["clips"], "activations": heard, "trained": sae_comparison.dictionary(run, seed, site)}

    def erase(folder: Path, clips: Step, activations: Step, trained: Step) -> dict:
        coder = evaluation_clips.coder_of(run, seed, site)
        if ":" in label:
            train, asked = _of_phones(run, seed, clips, activations, site, label, frames)
            names = [label.split(":")[1], "other"]
        else:
            names = _values(table(run, clips), label)
            splits = ("train", *evaluation_clips.HELD_OUT)
            sides = [_side(run, seed, clips, activations, site, split, label, names, frames) for split in splits]
            train, asked = sides[0], _joined(sides[1:])
        with torch.no_grad():
            orders, strength = _orders(coder, train, seed)
            ways = _ways(coder, train, orders)
            rows = [
                (way, count, who, right)
                for (way, count), change in tqdm(ways.items(), desc="reading what is left", unit=" probes")
                for who, right in erasure.read(train, asked, change).items()
            ]
        pd.DataFrame(rows, columns=["way", "count", "speaker", "right"]).to_csv(folder / "read.csv", index=False)
        _compared(orders, strength).to_csv(folder / "controls.csv", index=False)
        wrote = _words(run, seed, site, coder, orders, most)
        wrote.to_csv(folder / "words.csv", index=False)
        told = {"values": names, "speakers": len(set(asked.speaker)), "features": coder.d_sae}
        return told | {"frames": len(train.is_it), "clips": int((wrote.way == "untouched").sum())}

    params = {"seed": seed, "site": site, "label": label, "frames": frames, "most": most, "matched": MATCHED}
    return Recipe(
        "erasing", erase, params, needs=needs, by=made_by(run, "05"), label=f"{label} erased at {site}",
    )  # fmt: skip


def concept(known: pd.DataFrame, labels: Sequence[str], phones: pd.DataFrame) -> str:
    """What `erased` can be asked of the clips `known` (`recipes.table`): "manner:nasal" where `phones` tell of nasals
    and of other phones, else the first of some labels whose two commonest values both have two speakers on the training
    side and two on the other; "" for none."""
    who = known.speaker.where(known.speaker != "", known.id)
    train = known.split == "train"
    sides = [train, known.split.isin(evaluation_clips.HELD_OUT)]
    phones = phones[phones["clip"].isin(known.index)]
    if len(phones):
        row, nasal = phones["clip"], (phones.manner == "nasal").to_numpy()
        held = [(who[row].to_numpy(), side[row].to_numpy()) for side in sides]
        each = [len(set(speaker[(nasal == kind) & mine])) for speaker, mine in held for kind in (True, False)]
        if min(each) >= 2:
            return "manner:nasal"
    for label in labels:
        names = known[label][known[label] != ""].value_counts().index[:2]
        if len(names) == 2 and all(
            who[side & (known[label] == name)].nunique() >= 2 for side in sides for name in names
        ):
            return label
    return ""


def _values(known: pd.DataFrame, label: str) -> list[str]:
    names = known[known[label] != ""][label].value_counts().index[:2].tolist()
    if len(names) < 2:
        raise ValueError(f"{label}: the clips have fewer than two values of it")
    return names


def _of_phones(run, seed, clips, activations, site, label, most) -> tuple[erasure.Side, erasure.Side]:
    """Frames of phones of a class, such as "manner:nasal", and of all others: of training speakers and of the rest."""
    column, value = label.split(":")
    known = phone_selectivity.asked(run, table(run, clips), activations, column, seed)
    held, rows = store.Activations(activations.path).rows(site), np.flatnonzero(known.here)
    is_it, rng = known.frames.names[known.frames.label] == value, np.random.default_rng(seed)
    sides = []
    for choosing in (True, False):
        mine = np.flatnonzero(known.choosing == choosing)
        some = np.sort(rng.permutation(mine)[:most])
        sides.append(erasure.Side(held.take(rows[some]), is_it[some], known.frames.speaker[some]))
    return sides[0], sides[1]


def _side(run, seed, clips, activations, site, split, label, names, most) -> erasure.Side:
    """At most so many frames of a split that have one of two values of a label."""
    rows, voice = sae_comparison.frames_of(run, clips, activations, site, split)
    known = table(run, clips)
    voices = known.speaker.where(known.speaker != "", known.id)
    value = known.groupby(pd.factorize(voices)[0])[label].first().to_numpy()[voice]
    able = np.flatnonzero(np.isin(value, names))
    some = np.sort(np.random.default_rng(seed).permutation(able)[:most])
    return erasure.Side(rows.take(some), value[some] == names[0], pd.factorize(voices)[1].to_numpy()[voice[some]])


def _joined(sides: list[erasure.Side]) -> erasure.Side:
    x, is_it, speaker = zip(*sides, strict=True)
    return erasure.Side(torch.cat(x), np.concatenate(is_it), np.concatenate(speaker))


def _orders(coder, train: erasure.Side, seed: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """The features of each of ORDERS, and rate and size of all features on the training frames."""
    f = coder.encode(train.x)
    fires = (f > 0).sum(dim=0).numpy()
    size = f.sum(dim=0).numpy() / np.maximum(fires, 1) * coder.W_dec.norm(dim=1).numpy()
    rate, alive = fires / len(f), np.flatnonzero(fires)
    best = erasure.ranked(f, train.is_it)
    best = best[np.isin(best, alive)]
    near = controls.disjoint(rate, size, best[:MATCHED], alive, 1, caliper=np.inf)
    orders = {
        "best": best,
        "matched": np.concatenate([np.zeros(0, dtype=int), *near]),
        "random": np.random.default_rng(seed).permutation(alive),
    }
    return orders, pd.DataFrame({"rate": rate, "size": size})


def _compared(orders: dict, strength: pd.DataFrame) -> pd.DataFrame:
    """Sums over the best features over those of as many others: order, count, rate, size, rate × size."""
    strength = strength.assign(**{"rate × size": strength["rate"] * strength["size"]})
    rows = []
    for name in ORDERS[1:]:
        for count in (count for count in COUNTS if 0 < count <= min(MATCHED, len(orders[name]))):
            total = [strength.iloc[orders[each][:count]].sum() for each in ("best", name)]
            rows.append({"order": name, "count": count, **(total[0] / total[1])})
    return pd.DataFrame(rows, columns=["order", "count", "rate", "size", "rate × size"])


def _counted(order: np.ndarray, name: str, counts: Sequence[int]) -> list[int]:
    """Those of some counts for which an order has features: matched ones there are no more than MATCHED."""
    return [count for count in counts if name != "matched" or count <= len(order)]


def _ways(coder, train: erasure.Side, orders: dict) -> dict:
    """{(way, count): what is done to x}"""
    encode = functools.lru_cache(maxsize=2)(coder.encode)  # every way is tried on the same two sides
    ways = {}
    for name, order in orders.items():
        for count in _counted(order, name, COUNTS):
            some = order[:count]
            ways[f"{name} removed", count] = erasure.without(some, encode, coder.W_dec)
            if count and name != "random":
                ways[f"{name} alone", count] = erasure.alone(some, encode, coder.W_dec)
    ways["difference of means removed", 1] = erasure.without_mean_difference(train)
    ways["LEACE removed", 1] = erasure.least_squares_erased(train)
    return ways


def _words(run, seed, site, coder, orders: dict, most: int) -> pd.DataFrame:
    """What is written with features ablated or alone kept: a row a clip, way and count."""
    some = evaluation_clips.gathered(run, seed, (site,)).fewer(most=most, seed=seed)
    coded = patching.Coded(some.heard[site], coder)
    changes = {}
    for name in ORDERS[:2]:
        for count in _counted(orders[name], name, IN_WORDS):
            mine = orders[name][:count]
            changes[f"{name} removed", count] = coded.edit(edits.silence(mine))
            if name == "best":
                changes[f"{name} alone", count] = coded.edit(edits.keep(mine, coder.d_sae))
    wrote = patching.write(some.heard[site], changes, progress=long_pass(f"erasing at {site}"))
    plain = patching.said(some.heard[site], some.heard[site].plain)
    wrote |= {("untouched", 0): plain}
    parts = [
        some.scorer.count(texts).assign(way=way, count=count, speaker=some.speakers)
        for (way, count), texts in wrote.items()
    ]
    return pd.concat(parts, ignore_index=True)


def curves(step: Step) -> pd.DataFrame:
    """A row a way and count: `right`, how much is read, its interval over speakers, and their number; chance is 0.5."""
    told = step.table("read.csv", dtype={"speaker": str})
    return probes.summary(told, ["way", "count"])


def gone_at(step: Step, way: str) -> int:
    """How many features have to be removed in that way until the probe is at chance (`erasure.until_chance`); -1: not
    at any count."""
    told = step.table("read.csv", dtype={"speaker": str})
    shares = [dict(zip(part.speaker, part.right, strict=True)) for _, part in told[told.way == way].groupby("count")]
    return erasure.until_chance(COUNTS, shares)


def words(step: Step, seed: int = 0) -> pd.DataFrame:
    """A row a way and count: the WER with its interval, and how much it is above the untouched."""
    told = step.table("words.csv", dtype={"speaker": str})
    parts = {key: part.reset_index(drop=True) for key, part in told.groupby(["way", "count"], sort=False)}
    first = {("untouched", 0): parts.pop(("untouched", 0))} | parts
    found = scoring.table(first, next(iter(first.values())).speaker, seed=seed)
    found.insert(1, "count", [count for _, count in found.way])
    return found.assign(way=[way for way, _ in found.way])
