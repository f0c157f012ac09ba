"""Text in and out of Whisper: what it writes, how far that is from the reference, and the tokens it is made to say.

Every transcript of the project is decoded with the same settings: greedy (temperature 0, no beams, no fallback),
without timestamps, task *transcribe*, in the language of the clip, and ended where it repeats itself
(`decoding.is_loop`) or is longer than any speech of that duration (`decoding.most_tokens`). An English-only model is
given no language. See `prompt` and `decoding.Decoder`.

Word error rate is (substitutions + deletions + insertions) / words in the reference, summed over clips before dividing.
Both sides are first normalised as OpenAI does (Radford et al. 2022, appendix C): English by its normaliser, other
languages by the basic one, with diacritics kept. References that spell digits are compared digit by digit: see
`is_digits`.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files

import jiwer
import numpy as np
import pandas as pd
import torch
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from whisper_sae.model import languages, whisper_model
from whisper_sae.model.decoding import Decoder

ERRORS = ["substitutions", "deletions", "insertions"]

MULTILINGUAL = 51_865
"""Tokens in the vocabulary of OpenAI's smallest multilingual model; English-only ones have one less."""


# ------------------------------------------------------------------------------------------- prompts and languages


def languages_of(whisper) -> dict[str, int]:
    """The languages that a model can decode, {code: token}; {} for an English-only model.

    What generation_config.json says decides; without it the size of the vocabulary, as in OpenAI's code.
    """
    told = _settings(whisper)
    several = getattr(told, "is_multilingual", None)
    if several is None:
        several = whisper.config.vocab_size >= MULTILINGUAL
    if not several:
        return {}
    if known := getattr(told, "lang_to_id", None):
        return {token.strip("<|>"): number for token, number in known.items()}
    words = whisper.require_tokenizer().get_vocab()
    return {code: words[f"<|{code}|>"] for code in languages.LANGUAGES if f"<|{code}|>" in words}


def require_language(whisper, language: str) -> None:
    """BadModel where a profile sets a language that the model cannot decode."""
    known, code = languages_of(whisper), languages.code_of(language)
    if not language or code in (known or {languages.ENGLISH}):
        return
    if wrong := languages.fault(language):
        raise whisper_model.BadModel(f"language: {wrong}")
    if not known:
        raise whisper_model.BadModel(
            f"language: {whisper.name} is an English-only model and cannot decode {languages.named(code)}; "
            "take a multilingual one, or leave language out"
        )
    raise whisper_model.BadModel(
        f"language: {whisper.name} has no token for {languages.named(code)}; known: {', '.join(known)}"
    )


def can_decode(whisper, spoken: Sequence[str]) -> np.ndarray:
    """Whether a model has the language of each clip, a code: (clip,) bool. Where it has not, a reference is neither
    scored nor given to the decoder."""
    return np.isin(np.asarray(spoken, dtype=str), list(languages_of(whisper)) or [languages.ENGLISH])


def prompt(whisper, language: str = languages.ENGLISH) -> list[int]:
    """The tokens with which every transcript in a language begins: `<|startoftranscript|>`, language and
    `<|transcribe|>` where the model is multilingual, `<|notimestamps|>`.

    A language that a multilingual model has no token for is decoded as English.
    """
    tokenizer, told, known = whisper.require_tokenizer(), _settings(whisper), languages_of(whisper)
    start = told.decoder_start_token_id
    ids = [whisper.config.decoder_start_token_id if start is None else start]
    if known:
        task = (getattr(told, "task_to_id", None) or {}).get("transcribe")
        ids += [known.get(language, known.get(languages.ENGLISH, next(iter(known.values()))))]
        ids += [tokenizer.convert_tokens_to_ids("<|transcribe|>") if task is None else task]
    plain = getattr(told, "no_timestamps_token_id", None)
    return [*ids, tokenizer.convert_tokens_to_ids("<|notimestamps|>") if plain is None else plain]


def _settings(whisper):
    whisper.require_decoder()
    return whisper.whole.generation_config


def prompts(whisper, spoken: Sequence[str]) -> torch.Tensor:
    """The prompt of each clip by its language: (clip, position), on the CPU."""
    each = {language: prompt(whisper, language) for language in set(spoken)}
    return torch.tensor([each[language] for language in spoken], dtype=torch.long)


# ------------------------------------------------------------------------------------------------ in and out


@torch.no_grad()
def transcribe(whisper, mels: torch.Tensor, spoken: Sequence[str] | None = None) -> list[str]:
    """What a `model.Whisper` writes of each window, (clip, mel bin, mel frame); `spoken` are the clips' languages,
    English if None.

    Raises model.BadModel where there is no decoder or no tokenizer.
    """
    whisper.require_decoder()
    return texts(whisper, write(whisper, whisper.encoder(mels).last_hidden_state, spoken))


def write(
    whisper, encoded: torch.Tensor, spoken: Sequence[str] | None = None, limits: torch.Tensor | None = None
) -> list[list[int]]:
    """The tokens of greedy transcripts of the encoder's output, (clip, frame, width): see `transcribe`. `limits`,
    (clip,), are those of `decoding.most_tokens`."""
    begun = prompts(whisper, [languages.ENGLISH] * len(encoded) if spoken is None else list(spoken))
    return Decoder(whisper, prompt(whisper)).write(encoded, prompts=begun, limits=limits)


def texts(whisper, ids: list[list[int]]) -> list[str]:
    """The texts of transcripts, tokens a clip."""
    found = whisper.require_tokenizer().batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in found]


@torch.no_grad()
def detect_languages(whisper, encoded: torch.Tensor) -> tuple[list[str], np.ndarray]:
    """The most probable language of each window and its probability among all languages of a multilingual model, from
    the encoder's output, (clip, frame, width). As `detect_language` of openai/whisper: the softmax over the language
    tokens that may follow `<|startoftranscript|>`. Raises ValueError for an English-only model."""
    known = languages_of(whisper)
    if not known:
        raise ValueError(f"{whisper.name} is an English-only model and detects no language")
    codes, tokens = list(known), torch.tensor(list(known.values()), device=encoded.device)
    decoder = Decoder(whisper, prompt(whisper))
    start = torch.tensor([decoder.prompt[:1]], device=encoded.device).expand(len(encoded), -1)
    p, best = decoder.logits(encoded, start)[:, -1, tokens].softmax(dim=-1).max(dim=-1)
    return [codes[one] for one in best.tolist()], p.cpu().numpy()


def given(whisper, texts: list[str], spoken: Sequence[str] | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """What the decoder is given when it is made to say `texts`: (clip, position) ids and (clip,) lengths.

    The prompt of each clip's language, `spoken`, English if None; then the tokens of the text; the end-of-text token is
    only ever an answer. Position p holds the token that is *given* there; what the decoder says there is about the one
    after it. Short rows are filled with end-of-text.

    A text in capitals is written small, as Whisper would write it. Raises model.BadModel without a tokenizer.
    """
    tokenizer = whisper.require_tokenizer()
    begun = prompts(whisper, [languages.ENGLISH] * len(texts) if spoken is None else list(spoken)).tolist()
    ids = [
        first + tokenizer(_written(text), split_special_tokens=True, add_special_tokens=False).input_ids
        for first, text in zip(begun, texts, strict=True)
    ]
    lengths = np.array([len(one) for one in ids])
    filled = torch.full((len(ids), int(lengths.max(initial=1))), tokenizer.eos_token_id)
    for row, one in zip(filled, ids, strict=True):
        row[: len(one)] = torch.tensor(one)
    return filled, lengths


def _written(text: str) -> str:
    text = " ".join(text.replace("’", "'").split())
    return f" {text.lower() if text.isupper() else text}" if text else ""


def strings(whisper, ids: torch.Tensor, lengths: np.ndarray) -> pd.DataFrame:
    """A row a token that `given` gives: row, position, token_id, token (its string), word (its number; -1: prompt)."""
    tokenizer = whisper.require_tokenizer()
    special = {*tokenizer.all_special_ids, *prompt(whisper), *languages_of(whisper).values()}  # not all are named so
    rows = []
    for row, (one, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        word = -1
        for position, token in enumerate(one[:length]):
            said = tokenizer.convert_ids_to_tokens(token) if token in special else tokenizer.decode([token])
            word += token not in special and (said.startswith(" ") or word < 0)
            rows.append((row, position, token, said, -1 if token in special else word))
    return pd.DataFrame(rows, columns=["row", "position", "token_id", "token", "word"])


# ------------------------------------------------------------------------------------------------ word errors


@functools.cache
def english_spellings() -> dict[str, str]:
    """British spellings and the American ones that they are compared as: OpenAI's list (openai-whisper 20250625,
    `whisper/normalizers/english.json`, MIT, Copyright 2022 OpenAI), which many model directories lack."""
    return json.loads(files("whisper_sae.model").joinpath("english_spelling.json").read_text(encoding="utf-8"))


def normaliser(whisper, language: str = languages.ENGLISH) -> Callable[[str], str]:
    """OpenAI's normaliser for a language, a function text -> text: for English the one with numbers and spellings, for
    others the basic one, diacritics kept. Spellings are the model's own (normalizer.json) or `english_spellings`."""
    spellings = whisper.require_tokenizer().english_spelling_normalizer or english_spellings()
    if language == languages.ENGLISH:
        found = EnglishTextNormalizer(spellings)
    else:
        found = BasicTextNormalizer(split_letters=language in languages.WITHOUT_SPACES)
    return lambda text: found(text.replace("’", "'"))


def normalisers(whisper, spoken: Sequence[str]) -> list[Callable[[str], str]]:
    """The normaliser of each clip by its language: (clip,)."""
    each = {language: normaliser(whisper, language) for language in set(spoken)}
    return [each[language] for language in spoken]


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = {name: str(digit) for digit, name in enumerate(NAMES)} | {"oh": "0"}
"""English names of digits, and their figures."""


def is_digits(reference: str) -> bool:
    """Whether a reference spells a string of digits: each word is a digit, a number in figures or a single letter, and
    one is a digit.

    Whisper's normaliser writes "eight oh five" as one number, 805, and a transcript "8-0-5" as three, so that every
    digit would count as an error. Where this holds, both sides are compared with `digit_by_digit`.
    """
    words = re.sub(r"[^\w\s]", " ", reference.lower()).split()
    digits = [word in DIGITS or word.isdecimal() for word in words]
    others = [word for word, digit in zip(words, digits, strict=True) if not digit]
    return any(digits) and all(len(word) == 1 or word in ("double", "triple") for word in others)


def digit_by_digit(text: str) -> str:
    """A normalised text in which words with digits are written character by character, and names of digits in figures:
    `805 one` as `8 0 5 1`."""
    words = (DIGITS.get(word, word) for word in text.split())
    return " ".join(" ".join(word) if any(map(str.isdecimal, word)) else word for word in words)


def comparable(references: Sequence[str], normalise: Callable | Sequence[Callable] = str) -> list[Callable]:
    """How each clip's reference and transcript are made comparable, (clip,) functions text -> text: `normalise`, one
    for all or one a clip, then digit by digit where the reference spells digits."""
    each = [normalise] * len(references) if callable(normalise) else list(normalise)
    spelt = {way: (lambda text, way=way: digit_by_digit(way(text))) for way in set(each)}
    return [spelt[way] if text and is_digits(text) else way for text, way in zip(references, each, strict=True)]


def errors(said: list[str], heard: list[str], normalise: Callable | Sequence[Callable] = str) -> pd.DataFrame:
    """One row a clip: `words` in the reference, and how many substitutions, deletions and insertions make `heard` of
    them. `normalise` is one function for all or one a clip: see `comparable`.

    An empty reference and a transcript is as many insertions.
    """
    rows = []
    for reference, hypothesis, way in zip(said, heard, comparable(said, normalise), strict=True):
        reference, hypothesis = way(reference), way(hypothesis)
        if not reference.split():
            rows.append((0, 0, 0, len(hypothesis.split())))
            continue
        found = jiwer.process_words(reference, hypothesis)
        rows.append((len(reference.split()), found.substitutions, found.deletions, found.insertions))
    table = pd.DataFrame(rows, columns=["words", *ERRORS])
    return table.assign(errors=table[ERRORS].sum(axis=1))
