"""What sets two clips apart, or two groups of speakers: every feature of an index at once, the farthest apart first.

Of two clips there is one number a feature each, its peak, and all that can be said is which is the greater. Of two
groups the speaker is the unit, as everywhere: each speaker's clips are averaged, and d is of speakers. It is a
description to listen by, chosen among all features, and no test.
"""

import numpy as np
import pandas as pd
from scipy import sparse

from whisper_sae.stats import effects, stratified

BLOCK = 512
"""Features that are looked at together."""


def of_clips(a: np.ndarray, b: np.ndarray, farthest: np.ndarray) -> pd.DataFrame:
    """Features by how far their peaks in two clips are apart, (feature,) each: `feature a b difference`.

    `difference` is (a - b) / farthest, the farthest value of the feature anywhere, (feature,): loud features do not
    come first for being loud. What is silent in both is left out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.nan_to_num((a - b) / farthest, posinf=0, neginf=0)
    shown = np.flatnonzero((a != 0) | (b != 0))
    order = shown[np.lexsort([shown, -np.abs(apart[shown])])]
    return pd.DataFrame({"feature": order, "a": a[order], "b": b[order], "difference": apart[order]})


def of_groups(
    index, clip_of: np.ndarray, clips: pd.DataFrame, side: np.ndarray, corpus: np.ndarray | None = None
) -> pd.DataFrame:
    """Features by how far two groups of speakers are apart: `feature a b difference`, and `speakers_a`, `speakers_b`.

    `a` and `b` are means over speakers of the mean activation, `difference` is Cohen's d. `clip_of` (piece,) is the
    clip of each piece of the index, `side` (clip,) "a", "b" or "". With the `corpus` (clip,) of each, d is that within
    corpora. Raises ValueError where a group has fewer than two speakers, or no corpus has both. Features that say the
    same of everybody are left out.
    """
    inside = np.flatnonzero((side != "") & (effects.named_as(clips.speaker) != ""))
    rows = np.diff(index.starts)
    frames = np.bincount(clip_of, rows, minlength=len(clips))
    inside = inside[frames[inside] > 0]
    row_of = np.full(len(clips), -1)
    row_of[inside] = np.arange(len(inside))
    clip = np.repeat(row_of[clip_of], rows)  # of each frame
    here = np.flatnonzero(clip >= 0)
    member = sparse.csr_array((np.ones(len(here)), (clip[here], here)), shape=(len(inside), index.rows))
    speaker, group = clips.speaker.iloc[inside], pd.DataFrame({"group": side[inside]})
    if corpus is not None:
        group["corpus"] = corpus[inside]
    parts = []
    for first in range(0, index.features, BLOCK):
        last = min(first + BLOCK, index.features)
        total = (member @ index.columns(first, last)).toarray()
        if index.signed:
            total -= (member @ index.columns(first + index.features, last + index.features)).toarray()
        cast = effects.voices(total / frames[inside, None], speaker, group)
        found = effects.between(cast.means, cast.labels.group, ("a", "b"))
        d = found.d
        if cast.corpus is not None:
            d = stratified.within(cast.means, cast.labels.group, cast.corpus, ("a", "b")).d
        speakers = cast.labels.group.value_counts()
        told = {"feature": np.arange(first, last), "a": found.means[0], "b": found.means[1], "difference": d}
        parts.append(pd.DataFrame(told).assign(speakers_a=speakers["a"], speakers_b=speakers["b"]))
    found = pd.concat(parts, ignore_index=True)
    found = found[np.isfinite(found.difference)]
    return found.iloc[np.lexsort([found.feature, -found.difference.abs()])].reset_index(drop=True)
