"""Text in and out of Whisper: what it writes, how far that is from what was said, and the tokens it is made to say.

Word error rate is (substitutions + deletions + insertions) / words said, summed over clips before dividing. Both sides
are first brought to one spelling by Whisper's own normaliser for English (Radford et al. 2022, appendix C).
"""

import jiwer
import numpy as np
import pandas as pd
import torch
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

ERRORS = ["substitutions", "deletions", "insertions"]


@torch.no_grad()
def transcribe(whisper, mels: torch.Tensor) -> list[str]:
    """What a `model.Whisper` writes of each window, (clip, mel bin, mel frame): greedy, without timestamps.

    Raises model.BadModel where there is no decoder or no tokenizer.
    """
    whisper.require_decoder()
    tokenizer = whisper.require_tokenizer()
    told = {"language": "en", "task": "transcribe"} if tokenizer.language else {}
    heard = torch.ones(len(mels), mels.shape[-1], dtype=torch.long, device=mels.device)
    ids = whisper.whole.generate(
        mels, attention_mask=heard, do_sample=False, num_beams=1, return_timestamps=False, **told
    )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def given(whisper, texts: list[str]) -> tuple[torch.Tensor, np.ndarray]:
    """What the decoder is given when it is made to say `texts`: (clip, position) ids and (clip,) lengths.

    The prompt (`<|startoftranscript|>`, language and task where the model has several, `<|notimestamps|>`), then the
    tokens of the text; the end-of-text token is only ever an answer. Position p holds the token that is *given* there;
    what the decoder says there is about the one after it. Short rows are filled with end-of-text.

    A text in capitals is written small, as Whisper would write it. Raises model.BadModel without a tokenizer.
    """
    tokenizer = whisper.require_tokenizer()
    ids = [tokenizer(_written(text), split_special_tokens=True).input_ids[:-1] for text in texts]
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
    special = {*tokenizer.all_special_ids, *given(whisper, [""])[0][0].tolist()}  # not all name their prompt's special
    rows = []
    for row, (one, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        word = -1
        for position, token in enumerate(one[:length]):
            said = tokenizer.convert_ids_to_tokens(token) if token in special else tokenizer.decode([token])
            word += token not in special and (said.startswith(" ") or word < 0)
            rows.append((row, position, token, said, -1 if token in special else word))
    return pd.DataFrame(rows, columns=["row", "position", "token_id", "token", "word"])


def normaliser(whisper):
    """Whisper's normaliser for English: a function text -> text. American spellings where the model brings the list. A
    typographic apostrophe, U+2019, is a plain one."""
    english = EnglishTextNormalizer(whisper.require_tokenizer().english_spelling_normalizer or {})
    return lambda text: english(text.replace("’", "'"))


def errors(said: list[str], heard: list[str], normalise=str) -> pd.DataFrame:
    """One row a clip: `words` said, and how many substitutions, deletions and insertions make `heard` of them.

    Nothing said and something heard is as many insertions.
    """
    rows = []
    for reference, hypothesis in zip(map(normalise, said), map(normalise, heard), strict=True):
        if not reference.split():
            rows.append((0, 0, 0, len(hypothesis.split())))
            continue
        found = jiwer.process_words(reference, hypothesis)
        rows.append((len(reference.split()), found.substitutions, found.deletions, found.insertions))
    table = pd.DataFrame(rows, columns=["words", *ERRORS])
    return table.assign(errors=table[ERRORS].sum(axis=1))
