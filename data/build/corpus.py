"""Make the demo's corpus: `python data/build/corpus.py [folder]`; without a folder, data/demo/corpus.

48 voices × 10 sentences and 56 clips without speech, as an audiofolder, with the truth about all of it. Two runs
write the same bytes: each sentence is spoken by a process of its own, and the one random number of an Ogg file is
overwritten.
"""

import argparse
import csv
import shutil
from pathlib import Path

import espeak
import numpy as np
import ogg
import scene
import sentences
import sounds
import voices

EACH = 10
SEED = 3
RATE = 16_000
MANNER = {
    "stop": "p b t d k g t2 t[ d[ ?",
    "tap": "t#",
    "affricate": "tS dZ",
    "fricative": "f v T D s z S Z h w# C x",
    "nasal": "m n N",
    "approximant": "l r r- j w L",
}
MANNER = {phone: manner for manner, phones in MANNER.items() for phone in phones.split()}
COLUMNS = [
    "file_name", "text", "speaker", "gender", "accent", "split", "kind", "label", "null_label", "mic", "tilt_db",
    "level_db", "noise_db", "f0_hz", "rate_wpm", "tract", "variant", "lead_ms",
]  # fmt: skip
PHONE_COLUMNS = ["file_name", "start_ms", "end_ms", "phone", "ipa", "manner", "word", "word_index"]
WORD_COLUMNS = ["file_name", "start_ms", "end_ms", "word", "word_index"]


def f0(speech: np.ndarray, low: int = 50, high: int = 500) -> float:
    """Median fundamental frequency in Hz of the clean speech, over its loud voiced frames.

    Boersma's method (1993, Proceedings of the Institute of Phonetic Sciences 17, 97-110), without its path finding: the
    autocorrelation of windows of three periods, divided by that of the window, less 0.01 an octave below `high`.
    """
    size, lags = 3 * RATE // low, np.arange(RATE // high, RATE // low)
    spectrum = lambda x: np.abs(np.fft.rfft(x, 2 * size)) ** 2  # noqa: E731
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(speech.astype(np.float64), size)[::160]
    frames = frames[np.square(frames).mean(axis=1) > 0.2 * np.square(speech).mean()]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    same, own = (np.fft.irfft(spectrum(x))[..., : lags[-1] + 2] for x in (frames, window))
    same = same / same[:, :1] / (own / own[0])
    left, here, right = (same[:, lags + i] for i in (-1, 0, 1))
    score = np.where((here > left) & (here >= right), here - 0.01 * np.log2(lags * high / RATE), -np.inf)
    best = score.argmax(axis=1)
    left, here, right = (np.take_along_axis(x, best[:, None], 1)[:, 0] for x in (left, here, right))
    peak = lags[best] + 0.5 * (left - right) / (left - 2 * here + right)  # of the parabola through the three
    return float(np.median(RATE / peak[np.isfinite(score.max(axis=1)) & (here > 0.45)]))


def make(folder: Path) -> None:
    """Write the corpus; what stands in `folder` is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "audio").mkdir(parents=True)
    cast = voices.corpus_voices(seed=SEED)
    where = voices.splits(cast, seed=SEED)
    clips, phones, words, said_before = [], [], [], set()
    for number, voice in enumerate(cast):
        for turn in range(EACH):
            rng = np.random.default_rng([SEED, 10, number, turn])
            held = where[voice.speaker] != "train"
            while (text := sentences.draw(rng, held=held)) in said_before:
                pass
            said_before.add(text)
            row, heard, spelt = _utterance(folder, f"audio/{voice.speaker}_{turn}.ogg", text, voice, rng)
            clips.append(row | {"split": where[voice.speaker]})
            phones += heard
            words += spelt
    clips += _others(folder)
    _table(folder / "metadata.csv", COLUMNS, clips)
    _table(folder / "phones.csv", PHONE_COLUMNS, phones)
    _table(folder / "words.csv", WORD_COLUMNS, words)


def _utterance(folder: Path, name: str, text: str, voice, rng):
    said = espeak.speak(text, voice, pure=True)
    spelt = espeak.ipa(text, voice)
    if len(spelt) != len(said.phones):
        raise RuntimeError(f"{name}: {len(said.phones)} phones, {len(spelt)} in IPA")
    level = voice.level_db + rng.uniform(-0.9, 0.9)
    noise = level - rng.uniform(25, 45)
    clip, lead = scene.record(rng, said.samples, level, noise, voice.tilt_db)
    ogg.write(folder / name, clip)
    clock = lambda seconds: f"{1000 * (seconds + lead / RATE):.1f}"  # noqa: E731
    row = {
        "file_name": name, "text": text, "speaker": voice.speaker, "gender": voice.gender, "accent": voice.accent,
        "kind": "speech", "label": "", "null_label": voice.null, "mic": voice.mic,
        "tilt_db": f"{voice.tilt_db:.2f}", "level_db": f"{level:.1f}", "noise_db": f"{noise:.1f}",
        "f0_hz": f"{f0(said.samples):.1f}", "rate_wpm": voice.rate,
        "tract": f"{voice.tract / espeak.TRACTS:.3f}", "variant": voice.variant, "lead_ms": f"{1000 * lead / RATE:.1f}",
    }  # fmt: skip
    heard = [
        {
            "file_name": name, "start_ms": clock(start), "end_ms": clock(end), "phone": phone, "ipa": sign,
            "manner": MANNER.get(phone, "vowel"), "word": said.words[word][2], "word_index": word,
        }
        for (start, end, phone, word), sign in zip(said.phones, spelt, strict=True)
    ]  # fmt: skip
    told = [
        {"file_name": name, "start_ms": clock(start), "end_ms": clock(end), "word": word, "word_index": i}
        for i, (start, end, word) in enumerate(said.words)
    ]
    return row, heard, told


def _others(folder: Path, each: int = 4) -> list[dict]:
    """Clips without speech: no speaker, an empty text; `label` says what sounds. Two train, one each for the rest."""
    rows = []
    for kind_number, kind in enumerate(sounds.KINDS):
        for turn in range(each):
            rng = np.random.default_rng([SEED, 20, kind_number, turn])
            clip = scene.other(rng, kind, rng.uniform(1.5, 3.5), rng.uniform(-35, -18))
            name = f"audio/{kind}_{turn}.ogg"
            ogg.write(folder / name, clip)
            level = scene.level(clip / 32768)
            split = ("train", "train", "validation", "test")[turn]
            rows.append({"file_name": name, "kind": "sound", "label": kind, "split": split, "level_db": f"{level:.1f}"})
    return rows


def _table(path: Path, columns: list[str], rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parents[1] / "demo" / "corpus")
    make(parser.parse_args().folder)
