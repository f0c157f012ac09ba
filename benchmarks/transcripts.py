"""Greedy transcripts: ours against plain `generate` of transformers at the same batch size, paired, and their texts.

    python benchmarks/transcripts.py [--rounds 5] [--clips 48] [--batch 8] [--threads 2]

Each way runs in a process of its own, as its users would run it, and a round gives every way the same clips, one way
after the other, in turns. `generate, large pages` is plain generate with THP_MEM_ALLOC_ENABLE=1, as the package sets
it: a part of our gain that anyone can have. All take raw audio to texts: log-mel, encoder, decoder. Ours
sorts the clips of a round by duration, so that the transcripts of a batch end at about the same time. WER is that of
the references, normalised as OpenAI does. Needs tiny.en and librispeech-sample, where WHISPER_SAE_SHARED says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
SHARED = Path(os.environ.get("WHISPER_SAE_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MODEL, CORPUS = SHARED / "whisper-tiny.en", SHARED / "speech" / "librispeech-sample"
WAYS = ("generate", "generate, large pages", "ours")


def clips():
    """The clips of the corpus: a row each."""
    from whisper_sae.data import corpora

    return corpora.rows(CORPUS)


def worker(way: str, batch: int, threads: int) -> None:
    """Reads lists of row numbers, a line each, and writes seconds and texts."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    from whisper_sae.data import clip_table

    paths = clips().path.tolist()
    transcribe = ours(batch) if way == "ours" else generate(batch)
    for line in sys.stdin:
        waveforms = [clip_table.samples(paths[row]) for row in json.loads(line)]
        started = time.perf_counter()
        texts = transcribe(waveforms)
        print(json.dumps({"seconds": time.perf_counter() - started, "texts": texts}), flush=True)


def generate(batch: int):
    """Plain transformers."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(MODEL)

    def transcribe(waveforms: list[np.ndarray]) -> list[str]:
        texts = []
        for first in range(0, len(waveforms), batch):
            inputs = processor(waveforms[first : first + batch], sampling_rate=16_000, return_tensors="pt")
            ids = model.generate(inputs.input_features, do_sample=False, num_beams=1)
            texts += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
        return texts

    return transcribe


def ours(batch: int):
    """The project's decoder."""
    from whisper_sae.model import text, whisper_model

    whisper = whisper_model.load(str(MODEL), "cpu")

    def transcribe(waveforms: list[np.ndarray]) -> list[str]:
        order = np.argsort([-len(waveform) for waveform in waveforms], kind="stable")
        texts = [""] * len(waveforms)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch].tolist()
            mels = whisper_model.mel(whisper, [waveforms[row] for row in rows])
            for row, written in zip(rows, text.transcribe(whisper, mels), strict=True):
                texts[row] = written
        return texts

    return transcribe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=48, help="clips of a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.batch, given.threads)
    if not CORPUS.is_dir() or not MODEL.is_dir():
        sys.exit(f"no real data at {SHARED}; WHISPER_SAE_SHARED says where it is")
    from whisper_sae.model import text, whisper_model

    table = clips()
    order = np.random.default_rng(0).permutation(len(table))[: given.rounds * given.clips]
    how = ["--batch", str(given.batch), "--threads", str(given.threads)]
    processes = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--worker", way, *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"THP_MEM_ALLOC_ENABLE": str(int(way != "generate"))},
        )
        for way in WAYS
    }

    def ask(way: str, rows: list[int]) -> dict:
        process = processes[way]
        process.stdin.write(json.dumps(rows) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    for way in WAYS:  # warm
        ask(way, order[: given.batch].tolist())
    seconds, texts = {way: [] for way in WAYS}, {way: {} for way in WAYS}
    for number, first in enumerate(range(0, len(order), given.clips)):
        rows = order[first : first + given.clips].tolist()
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            answer = ask(way, rows)
            seconds[way].append(answer["seconds"] / len(rows))
            texts[way] |= dict(zip(rows, answer["texts"], strict=True))
            print(f"round {number + 1}, {way}: {len(rows) / answer['seconds']:.2f} clips/s", file=sys.stderr)
    for process in processes.values():
        process.stdin.close()
    rows = list(texts["ours"])
    normalise = text.normaliser(whisper_model.load(str(MODEL), "cpu"))
    for way in WAYS:
        ratio = [theirs / mine for theirs, mine in zip(seconds["generate"], seconds[way], strict=True)]
        same = np.mean([texts[way][row] == texts["generate"][row] for row in rows])
        errors = text.errors([table.text[row] for row in rows], [texts[way][row] for row in rows], normalise)
        print(
            f"{way:24} {1 / statistics.median(seconds[way]):6.2f} clips/s   × generate: {statistics.median(ratio):.2f} "
            f"({min(ratio):.2f} to {max(ratio):.2f})   same text {same:.1%}   "
            f"WER {errors.errors.sum() / errors.words.sum():.2%}"
        )


if __name__ == "__main__":
    main()
