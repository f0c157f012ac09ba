"""How far what was written is from what was said: words, letters, and how sure one can be of a difference.

Word error rate is (substitutions + deletions + insertions) / words said, summed over clips before dividing; so is the
character error rate. A clip without speech has no rate, but counts for `made_up`, the share of them with hallucinated
words (`nonspeech.has_words` of the raw transcript). A clip whose transcript is not known counts for neither. Two ways
of hearing are compared on the same clips, and what is drawn again for an interval is speakers, with all their clips:
clips of one speaker are alike, and two transcripts of one clip even more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jiwer
import numpy as np
import pandas as pd
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_sae.data import nonspeech
from whisper_sae.model.text import ERRORS, comparable, normaliser
from whisper_sae.stats import intervals

COUNTS = ["words", *ERRORS, "errors", "characters", "character_errors", "written", "hallucinated"]
"""Of each clip: words said, what went wrong with them, letters said and wrong, words written; and, of a clip without
speech, whether its raw transcript has words, 1 or 0, NaN for other clips."""


def normalisers(whisper) -> dict[str, Callable[[str], str]]:
    """Whisper's two ways to bring texts to one spelling (Radford et al. 2022, appendix C), and none; `text.normalisers`
    picks by language."""
    return {"english": normaliser(whisper), "basic": BasicTextNormalizer(), "none": str}


class Scorer:
    """Counts errors against the reference of each clip, (clip,): a text, "" where nobody speaks, None where the
    transcript is not known. A pair of texts that was met before is not counted again.

    `normalise` brings both sides to one spelling: one function for all clips, or one a clip, as `text.normalisers` has
    them. References that spell digits are compared digit by digit: see `text.is_digits`.
    """

    def __init__(
        self, said: Sequence[str | None], normalise: Callable[[str], str] | Sequence[Callable[[str], str]] = str
    ):
        self.references, self.normalise = list(said), normalise
        self.ways = comparable(self.references, normalise)
        self.texts: dict[tuple[Callable, str], str] = {}
        self.said = [text and self.tidy(text, clip) for clip, text in enumerate(self.references)]
        self.silent = [text is not None and not text.strip() for text in self.references]
        self.known: dict[tuple[str, str], tuple] = {}

    def at(self, clips: Sequence[int]) -> "Scorer":
        """The same of some of the clips, their numbers."""
        one = callable(self.normalise)
        ways = self.normalise if one else [self.normalise[clip] for clip in clips]
        return Scorer([self.references[clip] for clip in clips], ways)

    def count(self, wrote: Sequence[str], clips: Sequence[int] | None = None) -> pd.DataFrame:
        """A row a clip with COUNTS; `clips` are the numbers of those written of, all if None."""
        clips = range(len(self.said)) if clips is None else clips
        rows = []
        for clip, text in zip(clips, wrote, strict=True):
            hallucinated = float(nonspeech.has_words(text)) if self.silent[clip] else np.nan
            rows.append((*self._one(self.said[clip] or "", self.tidy(text, clip)), hallucinated))
        return pd.DataFrame(rows, columns=COUNTS)

    def tidy(self, text: str, clip: int = 0) -> str:
        """A text as it is compared with the reference of a clip."""
        way = self.ways[clip]
        if (way, text) not in self.texts:
            self.texts[way, text] = " ".join(way(text).split())
        return self.texts[way, text]

    def _one(self, said: str, wrote: str) -> tuple:
        if (said, wrote) not in self.known:
            self.known[said, wrote] = _counted(said, wrote)
        return self.known[said, wrote]


def _counted(said: str, wrote: str) -> tuple:
    if not said:
        return 0, 0, 0, len(wrote.split()), len(wrote.split()), 0, len(wrote), len(wrote.split())
    words, letters = jiwer.process_words(said, wrote), jiwer.process_characters(said, wrote)
    told = words.substitutions, words.deletions, words.insertions
    wrong = letters.substitutions + letters.deletions + letters.insertions
    return len(said.split()), *told, sum(told), len(said), wrong, len(wrote.split())


def rates(counts: pd.DataFrame) -> dict:
    """The rates of some clips, in percent of the words said (S, D, I, WER) or of the letters (CER), NaN without any;
    `made_up`, the share of the clips without speech with hallucinated words; `clips` and `words`."""
    spoken = counts[counts.words > 0]
    words, letters = (float(spoken[name].sum()) or np.nan for name in ("words", "characters"))
    told = {letter: 100 * spoken[name].sum() / words for letter, name in zip("SDI", ERRORS, strict=True)}
    return {
        "WER": 100 * spoken.errors.sum() / words, **told, "CER": 100 * spoken.character_errors.sum() / letters,
        "made_up": float(pd.to_numeric(counts.hallucinated, errors="coerce").mean()),  # "" in a stored table: NaN
        "clips": len(spoken), "words": int(spoken.words.sum()),
    }  # fmt: skip


def repetition(text: str, longest: int = 3) -> float:
    """The share of a text's runs of `longest` words (or of all, if it is shorter) that it has said before: 0 to 1."""
    words = text.split()
    runs = [tuple(words[first : first + longest]) for first in range(max(1, len(words) - longest + 1))]
    return 1 - len(set(runs)) / len(runs)


# --------------------------------------------------------------------------------------------------- intervals


class Compared(NamedTuple):
    """Rates of several ways on the same clips, in percent, (way,) each, and how much each is above the first."""

    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    more: np.ndarray
    more_low: np.ndarray
    more_high: np.ndarray
    speakers: int


def compared(wrong: np.ndarray, out_of: np.ndarray, speakers: Sequence, *, draws: int = 4000, level: float = 0.95,
             seed: int = 0) -> Compared:  # fmt: skip
    """Σ wrong / Σ out_of of several ways, `wrong` (way, clip) and `out_of` (clip,), with intervals over speakers,
    (clip,).

    Speakers are drawn with replacement, the same for all ways, so a difference is one on the same clips. Intervals are
    those of `intervals.of_draws`: NaN for fewer than `intervals.LEAST` speakers.
    """
    number, names = pd.factorize(np.asarray(speakers))
    n = len(names)
    above = np.stack([np.bincount(number, one, n) for one in np.asarray(wrong, float)], axis=1)  # (speaker, way)
    below = np.bincount(number, out_of, n)
    rate = 100 * above.sum(axis=0) / below.sum()
    if n < intervals.LEAST:
        nothing = np.full(len(rate), np.nan)
        return Compared(rate, nothing, nothing, rate - rate[0], nothing, nothing, n)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)  # (draw, speaker)
    total = times @ below
    drawn = 100 * (times @ above)[total > 0] / total[total > 0, None]
    low, high = intervals.of_draws(drawn, n, level)
    more_low, more_high = intervals.of_draws(drawn - drawn[:, :1], n, level)
    return Compared(rate, low, high, rate - rate[0], more_low, more_high, n)


def table(counted: Mapping[str, pd.DataFrame], speakers: Sequence, *, seed: int = 0) -> pd.DataFrame:
    """A row a way: its rates, the interval of its WER, and how much its WER is above that of the first (`more`).

    `counted` has what `Scorer.count` says of each way of hearing the same clips.
    """
    names, first = list(counted), next(iter(counted.values()))
    spoken = (first.words > 0).to_numpy()
    wrong = np.stack([counted[name].errors.to_numpy()[spoken] for name in names])
    who = np.asarray(speakers)[spoken]
    found = compared(wrong, first.words.to_numpy()[spoken], who, seed=seed)
    rows = [{"way": name, **rates(counted[name])} for name in names]
    told = {"WER_low": found.low, "WER_high": found.high, "more": found.more, "more_low": found.more_low,
            "more_high": found.more_high}  # fmt: skip
    return pd.DataFrame(rows).assign(**told, speakers=found.speakers)
