"""A tokenizer of Whisper's form for the demo: byte-level BPE learnt on our sentences, then Whisper's special tokens.

English only, as OpenAI's `.en` models: the decoder is started with <|startoftranscript|><|notimestamps|>. There are no
timestamp tokens, for the demo is never taught any. A text is read as if it began with a space, so "the dog" and " the
dog" are the same tokens.
"""

import json
from pathlib import Path

import numpy as np
import sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import WhisperTokenizer

SIZE = 560
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip


def make(seed: int = 0) -> WhisperTokenizer:
    """Frequent words become one token, rare ones two or three: 560 pieces for some 350 words."""
    rng = np.random.default_rng(seed)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator((sentences.draw(rng) for _ in range(20_000)), trainer)
    learnt = json.loads(raw.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return WhisperTokenizer(
        vocab=learnt["vocab"], merges=merges, add_prefix_space=True, additional_special_tokens=SPECIAL[1:]
    )


def ids(tokenizer: WhisperTokenizer) -> dict[str, int]:
    """The special tokens' numbers."""
    return {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}


if __name__ == "__main__":
    made = make()
    print(len(made), ids(made))
    print(made("the dog vanished").input_ids, made.convert_ids_to_tokens(made("the dog vanished").input_ids))
    made.save_pretrained(Path("/tmp/tok"))
    again = WhisperTokenizer.from_pretrained("/tmp/tok")
    print(again("the dog vanished").input_ids, repr(again.decode(made("the dog vanished").input_ids, True)))
