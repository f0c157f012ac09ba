"""Words and characters of which nobody told the time: what a transcript alone can say of a feature.

Two questions, both about clips. Does the highest a feature reaches in a clip go with a word's presence? And is the
feature high where the word should be, if each character of the text took as long as any other? That guess is off by
some hundred milliseconds, so the second is a question about a third of a second, not about a frame.

Both are compared with what comes out when the texts are dealt anew among clips by the same speaker and of about the
same length: longer clips have more words and higher peaks. A text keeps its word order, so whatever a feature does at
the start or the end of any clip is in both (the position-in-clip null).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array
from scipy.stats import rankdata


class Tokens(NamedTuple):
    """Where words or characters are in the texts of clips."""

    names: np.ndarray
    """(token,) in order of the alphabet."""
    token: np.ndarray
    """(occurrence,)."""
    clip: np.ndarray
    """(occurrence,)."""
    where: np.ndarray
    """(occurrence,) the middle of it, as a share of the text's length."""
    clips: int


def tokens(texts: Sequence[str], unit: str = "word", least: int = 5) -> Tokens:
    """The words (lower case, without punctuation) or characters of the texts, (clip,), that `least` clips or more have
    and as many have not: what is in every clip cannot be asked about. `unit` is word or character."""
    if unit not in ("word", "character"):
        raise ValueError(f"unit: {unit!r} is not one of word, character")
    pattern = r"[^\W_]+(?:['’][^\W_]+)*" if unit == "word" else r"[^\W_]"
    rows = [
        (match[0], clip, (match.start() + match.end()) / 2 / len(text))
        for clip, text in enumerate(map(str.lower, texts))
        for match in re.finditer(pattern, text)
    ]
    every = pd.DataFrame(rows, columns=["name", "at", "place"]).astype({"at": int, "place": float})
    having = every.groupby("name")["at"].nunique()
    kept = every[every.name.map(having).between(least, len(texts) - least)]
    token, names = pd.factorize(kept.name, sort=True)
    return Tokens(np.asarray(names, dtype=str), token, kept["at"].to_numpy(), kept.place.to_numpy(), len(texts))


def dealt(speakers, seconds, count: int = 200, alike: int = 2, seed: int = 0) -> Iterator[np.ndarray]:
    """`count` orders of the clips, (clip,) each: clip c gets the text of clip order[c].

    Texts are dealt among `alike` clips, or one more, by one speaker whose lengths, (clip,) seconds, are next to each
    other; speakers of a single clip, and clips without a speaker, "", are dealt together. In simulations in which
    nothing is to be found, two find no more than the false discovery rate; among eight, lengths already differ enough
    that long clips' peaks go with words.
    """
    speakers = np.asarray(speakers).astype(str)
    alone = pd.Series(speakers).map(pd.Series(speakers).value_counts()).to_numpy() < 2
    groups = np.where(alone, "", speakers)
    parts = []
    for name in np.unique(groups):
        mine = np.flatnonzero(groups == name)
        mine = mine[np.argsort(np.asarray(seconds)[mine], kind="stable")]
        parts += np.array_split(mine, max(1, round(len(mine) / alike)))
    rng = np.random.default_rng(seed)
    for _ in range(count):
        order = np.arange(len(speakers))
        for part in parts:
            order[part] = rng.permutation(part)
        yield order


def profile(codes: csc_array, clip: np.ndarray, clips: int, bins: int = 1) -> np.ndarray:
    """The highest that each feature reaches in each of `bins` equal parts of every clip: (clip, bin, feature) float32.

    `clip` is (frame,), numbers from 0 to `clips` - 1, frames of a clip together; give the frames of speech alone. It
    is dense: 4 · clips · bins · features bytes, so of a large dictionary ask some features at a time.
    """
    length = np.bincount(clip, minlength=clips)
    first = np.full(clips, len(clip))
    np.minimum.at(first, clip, np.arange(len(clip)))
    part = (np.arange(len(clip)) - first[clip]) * bins // np.maximum(length[clip], 1)
    found = np.zeros((clips * bins, codes.shape[1]), dtype=np.float32)
    row = clip[codes.indices] * bins + part[codes.indices]
    np.maximum.at(found, (row, np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))), codes.data)
    return found.reshape(clips, bins, -1)


class Question(NamedTuple):
    """A statistic of every feature × token, what independent clips would make of it, and how often it was asked."""

    weights: csr_array
    """(token, clip · bin), rows that sum to 1."""
    ranks: np.ndarray
    """(clip · bin, feature) the share of other clips that are lower there, equal ones counted half, less a half: sums
    of it stay small, and exact."""
    bins: int
    scale: np.ndarray
    """(token,) by which a mean rank becomes an AUC."""

    def asked(self, order: np.ndarray) -> np.ndarray:
        """The statistic where clip c has the text of clip order[c]: (feature, token), 0.5 for no connection."""
        has = np.argsort(order)  # the clip to which each text went
        cells = (has[:, None] * self.bins + np.arange(self.bins)).ravel()  # what each of a text's cells is there
        weights = self.weights.data.astype(np.float32), cells[self.weights.indices], self.weights.indptr
        found = csr_array(weights, shape=self.weights.shape) @ self.ranks
        return (0.5 + found * self.scale[:, None]).T

    @property
    def spread(self) -> np.ndarray:
        """The deviation of the statistic if clips were dealt without regard to anything: (feature, token)."""
        cells = self.weights.tocoo()
        clips = self.weights.shape[1] // self.bins
        by_bin = csr_array((cells.data, (cells.row, cells.col % self.bins)), shape=(len(self.scale), self.bins))
        uneven = self._squares - by_bin.power(2).sum(axis=1) / clips
        mine = self.ranks.reshape(clips, self.bins, -1).var(axis=0, ddof=1).mean(axis=0)  # (feature,)
        return np.sqrt(mine[:, None] * np.maximum(uneven, 0)) * self.scale

    @property
    def size(self) -> np.ndarray:
        """How many clips or places a token's statistic is made of: (feature, token), the same for all features."""
        return np.broadcast_to(1 / self._squares, (self.ranks.shape[1], len(self.scale)))

    @property
    def _squares(self) -> np.ndarray:
        return self.weights.power(2).sum(axis=1)


def presence(peaks: np.ndarray, said: Tokens) -> Question:
    """Does a feature reach higher in clips that have the word? `peaks` is (clip, 1, feature), of `profile`.

    The statistic is AUC over clips: P(higher in a clip with the word than in one without) + P(equal) / 2, exactly.
    """
    pairs = np.unique(np.stack([said.token, said.clip]), axis=1)
    having = np.bincount(pairs[0], minlength=len(said.names))
    weights = csr_array((1 / having[pairs[0]], tuple(pairs)), shape=(len(said.names), said.clips))
    return Question(weights, _ranks(peaks), 1, said.clips / (said.clips - having))


def position(profiles: np.ndarray, said: Tokens) -> Question:
    """Is a feature higher where the word should be than at the same place of other clips? `profiles` is (clip, bin,
    feature), of `profile`.

    The statistic is the mean share of other clips that are lower at that place, 0.5 for no connection; a place is a bin
    and its neighbours.
    """
    bins = profiles.shape[1]
    wide = np.pad(profiles, ((0, 0), (1, 1), (0, 0)), mode="edge")
    near = np.maximum(np.maximum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
    cell = said.clip * bins + np.minimum((said.where * bins).astype(int), bins - 1)
    times = np.bincount(said.token, minlength=len(said.names))
    weights = csr_array((1 / times[said.token], (said.token, cell)), shape=(len(said.names), said.clips * bins))
    return Question(weights, _ranks(near), bins, np.ones(len(said.names)))


def _ranks(profiles: np.ndarray) -> np.ndarray:
    """In each bin of each feature, the share of clips that are lower, equal ones half, less a half: (clip · bin,
    feature)."""
    clips, bins, features = profiles.shape
    share = (rankdata(profiles, axis=0) - 0.5) / clips - 0.5
    return share.reshape(clips * bins, features).astype(np.float32)
