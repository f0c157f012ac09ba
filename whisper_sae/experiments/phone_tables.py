"""What the corpora of a run tell of their phones and words: when each one sounds, with the row of its clip.

told = spoken.phones_of(run, heard)         # a row a phone; empty where no corpus tells any
words = spoken.words_of(run, heard)
Recipe(..., params={"told": spoken.digests(run)})      # a result that was made of it
"""

import string
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd

from whisper_sae.data import alignments, frame_alignment, phonology
from whisper_sae.experiments.pipeline import lying_here
from whisper_sae.profiles import Profile


def phones_of(run: Profile, heard: pd.DataFrame) -> pd.DataFrame:
    """When each phone of the clips `heard` sounds, where their corpora tell: `phones.read`, and `clip`, its row.

    `ipa`, `manner` and `word`, `word_index` ("", -1) are there whether a corpus tells them or not. What a corpus does
    not give in IPA is read as `articulation.ipa` does: "" for a pause or a mark that is no sound. Where it tells no
    manner, that is what `articulation.classes` says, or "phone" where that knows none.
    """
    parts = [_spelled(frame_alignment.read(folder)) for folder in lying_here(run).values()]
    nothing = frame_alignment.none().assign(ipa="", manner="")
    told = _of_clips(pd.concat(parts or [nothing], ignore_index=True), heard)
    for name, value in {"ipa": told.phone, "manner": "phone", "word": ""}.items():
        told[name] = told[name].fillna(value) if name in told else value
    number = told.word_index if "word_index" in told else pd.Series(-1, index=told.index)
    told["word_index"] = pd.to_numeric(number, errors="coerce").fillna(-1).astype(int)
    return told


def _spelled(told: pd.DataFrame) -> pd.DataFrame:
    if "ipa" not in told:
        told = told.assign(ipa=phonology.ipa(told.phone))
    if "manner" not in told:
        known = phonology.classes(told.ipa.unique(), "ipa").manner
        told = told.assign(manner=told.ipa.map(known).replace("", "phone"))
    return told


def words_of(run: Profile, heard: pd.DataFrame) -> pd.DataFrame:
    """When each word of the clips `heard` sounds, where their corpora tell: clip (its row), start, end (seconds), word.

    Of a corpus that tells no words by themselves (`phones.words`), the words of its phones.
    """
    parts = [frame_alignment.words(folder) for folder in lying_here(run).values()]
    told = _of_clips(pd.concat(parts or [frame_alignment.none().assign(word="")], ignore_index=True), heard)
    told = told[told.word.fillna("") != ""]
    others = _of_phones(phones_of(run, heard))
    by_themselves = heard.corpus[told["clip"].unique()].unique()
    others = others[~others["clip"].isin(heard.index[heard.corpus.isin(by_themselves)])]
    found = pd.concat([part[["clip", "start", "end", "word"]] for part in (others, told)], ignore_index=True)
    return found.astype({"clip": int}).sort_values(["clip", "start"], kind="stable", ignore_index=True)


def _of_clips(told: pd.DataFrame, heard: pd.DataFrame) -> pd.DataFrame:
    """Rows that tell of the clips `heard`, and in `clip` of which."""
    row = pd.Series(heard.index, index=[str(Path(path).resolve()) for path in heard.path])
    told = told.assign(clip=told.path.map(row)).dropna(subset="clip")
    return told.astype({"clip": int}).reset_index(drop=True)


def _of_phones(told: pd.DataFrame) -> pd.DataFrame:
    spoken = told[(told.word != "") & (told.word_index >= 0)]
    found = spoken.groupby(["clip", "word_index"]).agg(
        start=("start", "min"), end=("end", "max"), word=("word", "first")
    )
    return found.reset_index()


def in_words(told: pd.DataFrame, words: pd.DataFrame, texts: pd.Series) -> pd.DataFrame:
    """Phones with the word of the transcript that each is in: `word_index` and `word` are filled in by time where the
    corpus gives no `word_index` (TextGrid, CTM). -1 and "" for a phone that is in none.

    `told` is what `phones_of` gives, `words` what `words_of` gives, `texts` the transcript of each clip by its row. A
    phone belongs to the word that sounds in its middle.
    """
    words = words.reset_index(drop=True)
    place, text = np.full(len(words) + 1, -1), np.full(len(words) + 1, "", dtype=object)
    for clip, rows in words.groupby("clip").indices.items():
        transcript = str(texts[clip]).split()
        place[rows] = _places(words.word[rows].tolist(), transcript)
        text[rows] = [transcript[number] if number >= 0 else "" for number in place[rows]]
    row = frame_alignment.placed(words, told["clip"].to_numpy(), ((told.start + told.end) / 2).to_numpy(float)).row
    lacking = (told.word_index < 0).to_numpy() & (place[row] >= 0)
    return told.assign(
        word_index=np.where(lacking, place[row], told.word_index), word=np.where(lacking, text[row], told.word)
    )


def _places(timed: list[str], transcript: list[str]) -> np.ndarray:
    """Which word of a transcript each timed word is, (timed,), -1 for none: by spelling, or, where most are spelled
    otherwise, one by one if they are as many."""
    plain = [[word.lower().strip(string.punctuation) for word in words] for words in (timed, transcript)]
    found = np.full(len(timed), -1)
    for first, start, many in SequenceMatcher(None, *plain, autojunk=False).get_matching_blocks():
        found[first : first + many] = start + np.arange(many)
    if 2 * (found >= 0).sum() < len(timed) == len(transcript):
        return np.arange(len(timed))
    return found


def digests(run: Profile) -> dict[str, list[str]]:
    """For the key of a result: all that the corpora tell of their phones and words."""
    here = lying_here(run)
    return {name: [alignments.digest(folder, kind) for kind in ("phones", "words")] for name, folder in here.items()}
