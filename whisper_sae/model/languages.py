"""Languages of clips as the codes that Whisper knows them by: `de` for "de", "German", "de-DE" or "deu".

languages.code_of("German")                                 # "de"
languages.of_clips(clips, run.language)                     # a code a clip
languages.commonest(clips, run.language)                    # one for sounds that have none themselves
"""

import difflib

import numpy as np
import pandas as pd
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

ENGLISH = "en"

COLUMNS = ("language", "locale")
"""Columns in which a corpus names the language of a clip; Common Voice has `locale`."""

OTHERWISE = {
    "ara": "ar", "cmn": "zh", "deu": "de", "eng": "en", "fil": "tl", "fra": "fr", "fre": "fr", "ger": "de", "hin": "hi",
    "ita": "it", "iw": "he", "jpn": "ja", "jv": "jw", "kor": "ko", "nb": "no", "nld": "nl", "nob": "no", "por": "pt",
    "rus": "ru", "spa": "es", "zho": "zh",
}  # fmt: skip
"""Codes of other standards and corpora, and Whisper's own."""

WITHOUT_SPACES = {"zh", "yue", "ja", "th", "lo", "my"}
"""Languages that do not part words by spaces: their letters are compared, as in Radford et al. 2022, appendix C."""


def code_of(name: str) -> str:
    """Whisper's code of a language by its code or English name, whatever its region; "" if Whisper does not know it."""
    low = name.strip().lower().replace("_", "-")
    known = {**{code: code for code in LANGUAGES}, **OTHERWISE, **TO_LANGUAGE_CODE}
    return known.get(low) or known.get(low.split("-")[0], "")


def fault(name: str) -> str:
    """What is wrong with the name of a language, in one line; "" if nothing is."""
    if code_of(name):
        return ""
    close = difflib.get_close_matches(name.strip().lower(), [*TO_LANGUAGE_CODE, *LANGUAGES], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name!r} is no language that Whisper knows; {hint}take a code or an English name, such as 'de' or 'German'"


def named(code: str) -> str:
    """A language for readers: `German (de)`."""
    return f"{LANGUAGES[code].title()} ({code})" if code in LANGUAGES else code


def recorded(clips: pd.DataFrame) -> np.ndarray:
    """The language that the corpus records for each clip, as a code: (clip,); "" where it records none, and what it
    says itself where Whisper does not know the language."""
    found = np.full(len(clips), "", dtype=object)
    for column in COLUMNS:
        if column in clips:
            given = clips[column].fillna("").astype(str).str.strip().to_numpy()
            codes = {one: code_of(one) or one.lower() for one in set(given)}
            found = np.where(found == "", [codes[one] for one in given], found)
    return found


def commonest(clips: pd.DataFrame, language: str = "") -> str:
    """The language that most clips are decoded in (`of_clips`), of equals the first by its code: for sounds that have
    none themselves. English where there is no clip."""
    codes, counts = np.unique(of_clips(clips, language).astype(str), return_counts=True)
    return str(codes[counts.argmax()]) if len(codes) else code_of(language) or ENGLISH


def of_clips(clips: pd.DataFrame, language: str = "") -> np.ndarray:
    """The language that each clip is decoded and scored in, (clip,): `language` if a profile sets it, else what the
    corpus records (`language` or `locale`), else English."""
    if language:
        return np.full(len(clips), code_of(language) or language, dtype=object)
    found = recorded(clips)
    return np.where(found == "", ENGLISH, found)
