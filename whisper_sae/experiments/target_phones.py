"""Words that hold a phone and words that do not, and what became of them: who is hurt, and which sound turned into
which."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import jiwer
import numpy as np
import pandas as pd


class Spoken(NamedTuple):
    """The words of some clips in order, (word,) each."""

    clip: np.ndarray
    """Row number of its clip."""
    place: np.ndarray
    """Its number in its clip."""
    speaker: np.ndarray


def holding(words: Spoken, told: pd.DataFrame, rows: Mapping[int, int], column: str = "ipa") -> dict[str, np.ndarray]:
    """{phone: (word,) bool}, which words hold it. `told` has `clip`, `word_index` and the phone of `column`, a row a
    phone; `rows` says which row number its clips have."""
    number = {where: word for word, where in enumerate(zip(words.clip.tolist(), words.place.tolist(), strict=True))}
    found = {}
    for name, clip, place in zip(told[column], told["clip"], told.word_index, strict=True):
        word = number.get((rows.get(clip, -1), place))
        if word is not None:
            found.setdefault(name, np.zeros(len(words.clip), dtype=bool))[word] = True
    return found


def contrast(lost: np.ndarray, holds: np.ndarray, speaker: np.ndarray) -> np.ndarray:
    """What words that hold the phone lose above what others lose, of each speaker who has both: (…, speaker).

    `lost` is (…, word): a difference to the untouched, so this is a difference in differences.
    """
    found = []
    for name in np.unique(speaker[holds]):
        mine = speaker == name
        if (mine & ~holds).any():
            found.append(lost[..., mine & holds].mean(axis=-1) - lost[..., mine & ~holds].mean(axis=-1))
    return np.stack(found, axis=-1) if found else np.zeros((*lost.shape[:-1], 0))


def missed(said: Sequence[str], wrote: Sequence[str], words: Spoken) -> np.ndarray:
    """Which words were not written as they were said, (word,) bool: substituted or deleted."""
    first = np.searchsorted(words.clip, np.arange(len(said)))
    found = np.zeros(len(words.clip), dtype=bool)
    for start, before, after in zip(first, said, wrote, strict=True):
        for kind, one, _, place in changed(before, after):
            if kind != "insert":
                found[start + place : start + place + len(one)] = True
    return found


def spans(text: str, normalise: Callable[[str], str]) -> tuple[str, np.ndarray]:
    """The normalised text, and which of its words each word of the text became: (word, 2), the first and the one after
    the last; equal where a word has none left, such as a hesitation.

    Words are normalised alone and compared with the text normalised as a whole; where they differ, as "twenty five" and
    "25" do, all the words of the passage share all that it became. So a perfect transcript misses no word.
    """
    alone = [(place, token) for place, word in enumerate(text.split()) for token in normalise(word).split()]
    whole = normalise(text).split()
    found = np.full((len(text.split()), 2), -1)

    def add(place: int, first: int, last: int) -> None:
        old = found[place]
        found[place] = (first, last) if old[0] < 0 else (min(old[0], first), max(old[1], last))

    passages = SequenceMatcher(None, [token for _, token in alone], whole, autojunk=False).get_opcodes()
    for kind, first, last, start, end in passages:
        for n in range(first, last):
            add(alone[n][0], *((start + n - first, start + n - first + 1) if kind == "equal" else (start, end)))
    found[found[:, 0] < 0] = 0
    return " ".join(whole), found


def within(marked: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Whether anything is marked, (item,) bool, from `first` up to, but not with, `last`: (span,) bool."""
    total = np.r_[0, np.cumsum(marked)]
    return total[last] > total[first]


def changed(said: str, wrote: str) -> list[tuple[str, list[str], list[str], int]]:
    """What must be done to one text to have the other: (substitute, delete or insert; words said; words written;
    where)."""
    before, after = said.split(), wrote.split()
    if before == after:
        return []
    if not before:
        return [("insert", [], after, 0)]
    return [
        (part.type, before[part.ref_start_idx : part.ref_end_idx], after[part.hyp_start_idx : part.hyp_end_idx],
         part.ref_start_idx)
        for part in jiwer.process_words(" ".join(before), " ".join(after)).alignments[0]
        if part.type != "equal"
    ]  # fmt: skip


def turned(said: Sequence[str], wrote: Sequence[str], spelling: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Which words and which phones became which: `said wrote phones times`, the most frequent first.

    `spelling` gives the phones of a word; of a pair of words in which one is unknown, `phones` is "". It tells what had
    to be changed to make the one's phones the other's, such as "θ → f"; ∅ is none.
    """
    pairs = Counter()
    for before, after in zip(said, wrote, strict=True):
        for _, one, other, _ in changed(before, after):
            width = max(len(one), len(other))
            pairs.update(zip([*one, *["∅"] * (width - len(one))], [*other, *["∅"] * (width - len(other))], strict=True))
    rows = [(*pair, _phones(*pair, spelling), times) for pair, times in pairs.most_common()]
    return pd.DataFrame(rows, columns=["said", "wrote", "phones", "times"])


def _phones(one: str, other: str, spelling: Mapping[str, Sequence[str]]) -> str:
    if one not in spelling or other not in spelling:
        return ""
    steps = changed(" ".join(spelling[one]), " ".join(spelling[other]))
    return ", ".join(f"{' '.join(a) or '∅'} → {' '.join(b) or '∅'}" for _, a, b, _ in steps)


def spellings(told: pd.DataFrame, column: str = "ipa") -> dict[str, tuple[str, ...]]:
    """The phones of each word as it is said most often; `told` is a row a phone, in order, with clip, word_index,
    word."""
    said = told[told.word_index >= 0].groupby(["clip", "word_index"], sort=False)
    heard = pd.DataFrame({"word": said.word.first(), "phones": said[column].agg(tuple)})
    return heard.groupby("word").phones.agg(lambda phones: Counter(phones).most_common(1)[0][0]).to_dict()
