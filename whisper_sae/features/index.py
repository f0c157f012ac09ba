"""What every feature says of a whole corpus, kept so that no question about it needs the model again.

    index.json                 features, signed, pieces, rows, firings, passages
    starts.npy                 (piece + 1,)    the first row of each piece, and the number of rows
    scale.npy, strongest.npy   (side,)         what values are multiplied by; the strongest value, 0 where there is none
    firings.npy, passages.npy  (side + 1,)     where those of each side begin, and where all end
    position, value            (firing,)       by side, then by row
    passage.piece, .firings, .peak, .position  (passage,)  by side, then by piece
    by_piece.first.npy         (piece + 1,)    where the passages of each piece begin, and where all end
    by_piece.side, .peak, .position            (passage,)  by piece, then by side

A *piece* is some consecutive rows, such as the frames of a clip. A *firing* is a value that is not zero. A *passage* is
all that a feature says in one piece: it tells the piece, how many firings, the loudest value and where that is, so
that a firing itself needs only its position in the piece (uint16) and its value (float16): 4 bytes, and 16 or 18 for
each passage. A *side* is what a feature says above zero or, in a `signed` index, below it, which is side
features + feature: only magnitudes are stored.

Values are kept to 11 significant bits: within 0.05 % of what was said. Each side has a scale of its own, a power of
two, so that nothing overflows, and only what is 2^29 times weaker than the strongest is raised to that. Of values that
are equal then, the earlier row comes first, always.

Neurons are not sparse, and can be indexed as well: every value that is not zero is kept. That takes twice what the
recording in float16 takes; where it is too much, let the build be told only the values beyond a quantile.

`transpose` writes all this.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csc_array

SIDES = ("both", "positive", "negative")


class Index:
    """A folder that `build` has written, memory-mapped.

    Rows are counted over the whole corpus, in the order of the store; `starts`, (piece + 1,), is where pieces begin. A
    `side` is "positive", "negative" or "both"; what is not signed has no negative side.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        told = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.features, self.signed, self.rows = told["features"], told["signed"], told["rows"]
        self.starts, self.scale, self.strongest = (self._load(name) for name in ("starts", "scale", "strongest"))
        self.firings, self.passages = self._load("firings"), self._load("passages")
        self._position, self._value = self._load("position"), self._load("value")
        names = ("piece", "firings", "peak", "position")
        self._of_passage = {name: self._load(f"passage.{name}") for name in names}
        self._by_piece = {name: self._load(f"by_piece.{name}") for name in ("first", "side", "peak", "position")}

    def _load(self, name: str) -> np.ndarray:
        found = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(found)  # plain, and still mapped

    # ------------------------------------------------------------------------------------ all features at once

    @property
    def sides(self) -> int:
        """How many sides there are: the features, and in a signed index as many again."""
        return len(self.firings) - 1

    @property
    def rates(self) -> np.ndarray:
        """The share of rows on which each feature is not zero: (feature,)."""
        return np.diff(self.firings).reshape(-1, self.features).sum(axis=0) / self.rows

    @property
    def maxima(self) -> np.ndarray:
        """The largest value of each feature: (feature,), 0 where none is above zero."""
        return self.strongest[: self.features]

    @property
    def minima(self) -> np.ndarray:
        """The smallest value of each feature: (feature,), 0 where none is below zero."""
        return -self.strongest[self.features :] if self.signed else np.zeros(self.features, np.float32)

    def columns(self, first: int, last: int) -> csc_array:
        """Sides `first` to `last`, exclusive, as a sparse array (row, side) of magnitudes; of a signed index the sides
        from `features` on are what is below zero."""
        if not 0 <= first <= last <= self.sides:
            raise IndexError(f"sides: {first} to {last} of {self.sides}")
        passage = slice(self.passages[first], self.passages[last])
        piece, count = (self._of_passage[name][passage] for name in ("piece", "firings"))
        begins = self.firings[first : last + 1]
        at = slice(begins[0], begins[-1])
        number = np.int32 if max(self.rows, begins[-1] - begins[0]) < 1 << 31 else np.int64
        rows = np.repeat(self.starts[piece].astype(number), count)
        rows += self._position[at]
        values = self._value[at].astype(np.float32)
        values *= np.repeat(self.scale[first:last], np.diff(begins))
        return csc_array((values, rows, (begins - begins[0]).astype(number)), shape=(self.rows, last - first))

    def of_piece(self, piece: int, side: str = "both") -> pd.DataFrame:
        """What fires in one piece, a row a feature: `feature`, `row` and `value` of its peak; the strongest first."""
        self._require(piece)
        first, last = self._by_piece["first"][[piece, piece + 1]]
        told = {name: self._by_piece[name][first:last] for name in ("side", "peak", "position")}
        kind, feature = np.divmod(told["side"].astype(np.int64), self.features)
        value = told["peak"].astype(np.float32) * self.scale[told["side"]]
        row = self.starts[piece] + told["position"]
        order = np.lexsort([row, feature, -value])
        order = order[np.isin(kind[order], [kind for kind, _ in self._sides(0, side)])]
        found = pd.DataFrame({"feature": feature, "row": row, "value": np.where(kind, -value, value)}).iloc[order]
        return found.drop_duplicates("feature").reset_index(drop=True)

    # ----------------------------------------------------------------------------------------- of one feature

    def count(self, feature: int, side: str = "both") -> int:
        """On how many rows it is not zero."""
        return sum(int(self.firings[s + 1] - self.firings[s]) for _, s in self._sides(feature, side))

    def activations(self, feature: int, side: str = "both") -> tuple[np.ndarray, np.ndarray]:
        """All rows on which it is not zero, in order, and its values there: (firing,) twice."""
        parts = [self._firings_of(kind, s, slice(None)) for kind, s in self._sides(feature, side)]
        rows, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable") if len(parts) > 1 else slice(None)
        return rows[order], values[order]

    def top(self, feature: int, n: int, side: str = "both") -> tuple[np.ndarray, np.ndarray]:
        """The n rows on which its value is farthest from zero, the farthest first, and the values: (n or fewer,) twice.

        However much it fires, only its peaks and the passages of the n highest are looked at.
        """
        n, parts = max(n, 0), []
        for kind, s in self._sides(feature, side):
            peak = self._of_passage["peak"][self.passages[s] : self.passages[s + 1]].view(np.uint16)  # keeps the order
            which = np.arange(len(peak))
            if 0 < n < len(peak):
                bound = np.partition(peak, -n)[-n]
                which = np.sort(np.concatenate([(peak > bound).nonzero()[0], (peak == bound).nonzero()[0][:n]]))
            parts.append(self._firings_of(kind, s, which))
        rows, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort([rows, -np.abs(values)])[:n]
        return rows[order], values[order]

    def between(self, feature: int, low: float, high: float, absolute: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The rows on which low ≤ value ≤ high, in order, and the values; `absolute` asks the same of |value|. A row on
        which it is zero is none of them."""
        rows, values = self.activations(feature)
        asked = np.abs(values) if absolute else values
        inside = (asked >= low) & (asked <= high)
        return rows[inside], values[inside]

    def peaks(self, feature: int, side: str = "both") -> pd.DataFrame:
        """A row a piece in which it fires, in order: `piece`, `row` and `value` where it is farthest from zero, and the
        number of its `firings`."""
        parts = []
        for kind, s in self._sides(feature, side):
            told = {name: each[self.passages[s] : self.passages[s + 1]] for name, each in self._of_passage.items()}
            piece, value = told["piece"].astype(np.int64), told["peak"].astype(np.float32) * self.scale[s]
            firings = told["firings"].astype(np.int64)
            row = self.starts[piece] + told["position"]
            value = -value if kind else value
            parts.append(pd.DataFrame({"piece": piece, "row": row, "value": value, "firings": firings}))
        if len(parts) == 1:
            return parts[0]
        found = pd.concat(parts, ignore_index=True)
        found["firings"] = found.groupby("piece").firings.transform("sum")
        found = found.iloc[np.lexsort([found.row, -found.value.abs(), found.piece])]
        return found.drop_duplicates("piece").reset_index(drop=True)

    def trace(self, feature: int, piece: int) -> np.ndarray:
        """What it says of every row of one piece, zeros and all: (row of the piece,) float32."""
        self._require(piece)
        found = np.zeros(self.starts[piece + 1] - self.starts[piece], dtype=np.float32)
        for kind, s in self._sides(feature, "both"):
            pieces = self._of_passage["piece"][self.passages[s] : self.passages[s + 1]]
            rows, values = self._firings_of(kind, s, np.arange(*np.searchsorted(pieces, [piece, piece + 1])))
            found[rows - self.starts[piece]] = values
        return found

    def where(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece of each row, and its position there: (row,) twice."""
        piece = np.searchsorted(self.starts, rows, side="right") - 1
        return piece, rows - self.starts[piece]

    def _require(self, piece: int) -> None:
        if not 0 <= piece < len(self.starts) - 1:
            raise IndexError(f"piece: there is no {piece}; there are {len(self.starts) - 1}")

    def _sides(self, feature: int, side: str) -> list[tuple[int, int]]:
        """Which sides are asked for, 0 above zero or 1 below, and their numbers."""
        if side not in SIDES:
            raise ValueError(f"side: {side!r} is not one of {', '.join(SIDES)}")
        if not 0 <= feature < self.features:
            raise IndexError(f"feature: there is no {feature}; there are {self.features}")
        if side == "negative" and not self.signed:
            raise ValueError("side: nothing is negative here; the index is not signed")
        kinds = {"both": (0, 1), "positive": (0,), "negative": (1,)}[side] if self.signed else (0,)
        return [(kind, feature + kind * self.features) for kind in kinds]

    def _firings_of(self, kind: int, s: int, which: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of a side, in all of its passages or some, in order."""
        first, last = self.passages[s], self.passages[s + 1]
        piece, count = (self._of_passage[name][first:last] for name in ("piece", "firings"))
        if isinstance(which, slice):
            at = slice(self.firings[s], self.firings[s + 1])
        else:
            begin = self.firings[s] + _begins(count)[which]
            piece, count = piece[which], count[which]
            at = np.repeat(begin - _begins(count)[:-1], count) + np.arange(count.sum(dtype=np.int64))
        rows = np.repeat(self.starts[piece], count) + self._position[at]
        values = self._value[at].astype(np.float32) * self.scale[s]
        return rows, -values if kind else values


def _begins(count: np.ndarray) -> np.ndarray:
    """Where each begins and where all end, of how many there are: (n,) -> (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
