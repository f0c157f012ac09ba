"""The training set: shards of made-up speech on disk, each a function of its number alone.

Speaking takes 5 ms a sentence, a step of training several times that, and one shard serves several epochs: so the
speech is made before the training and not during it.

    python data/build/cache.py data/raw/demo_training 0 24      # shards 0 to 23, and the held-out one
"""

import argparse
import os
import time
from pathlib import Path

import espeak
import numpy as np
import scene
import sentences
import sounds
import voices

SHARD = 2_000
WITHOUT_SPEECH = 0.06
SHUFFLED, ALTERED = (0.6, 0.3), (0.0, 0.45)
"""Shares of the clips that say words in no order, and an altered sentence; in shards before LATER, and from it on."""
HELD = 9_000
LATER = 60


def shard(number: int) -> dict[str, np.ndarray]:
    """{sound: all samples in a row, ends: where each clip ends, text: what is said, words: (clip, start_s, end_s)}.

    More than half of the clips say what no grammar would; else the model learns grammar by heart and stops listening.

    Shard HELD is small and holds what no other does: held-out sentences. It is what the training is watched by.
    """
    rng = np.random.default_rng([20, number])
    clips, texts, words = [], [], []
    for _ in range(150 if number == HELD else SHARD):
        if rng.random() < WITHOUT_SPEECH:
            kind = list(sounds.KINDS)[rng.integers(len(sounds.KINDS))]
            clips.append(scene.other(rng, kind, rng.uniform(1, 4), rng.uniform(-50, -15)))
            texts.append("")
            continue
        voice = voices.draw_voice(rng)
        text, said = spoken(rng, voice, later=number >= LATER, held=number == HELD)
        noise = voice.level_db - rng.uniform(15, 45)
        clip, lead = scene.record(rng, said.samples, voice.level_db, noise)
        words += [(len(clips), start + lead / scene.RATE, end + lead / scene.RATE) for start, end, _ in said.words]
        clips.append(clip)
        texts.append(text)
    ends = np.cumsum([len(clip) for clip in clips])
    return {"sound": np.concatenate(clips), "ends": ends, "text": np.array(texts), "words": np.array(words)}


def sentence(rng: np.random.Generator, later: bool, held: bool) -> str:
    """What is said in a clip: grammar, words in no order, or something between."""
    if held:
        return sentences.draw(rng, held)
    chance = rng.random()
    if chance < SHUFFLED[later]:
        return sentences.shuffled(rng)
    return sentences.altered(rng) if chance < SHUFFLED[later] + ALTERED[later] else sentences.draw(rng)


def spoken(rng: np.random.Generator, voice, later: bool, held: bool) -> tuple[str, espeak.Spoken]:
    """A sentence of training, or a held-out one, said by `voice`; another one where word times cannot be told."""
    while True:
        text = sentence(rng, later, held)
        try:
            return text, espeak.speak(text, voice)
        except espeak.Merged:
            continue


def make(folder: Path, first: int, last: int) -> None:
    """Write the shards that are missing; each in a process of its own, for espeak remembers what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in [HELD, *range(first, last)]:
        path = folder / f"{number:04d}.npz"
        if path.exists():
            continue
        start = time.time()
        if (child := os.fork()) == 0:
            with open(path.with_suffix(".part"), "wb") as file:
                np.savez(file, **shard(number))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"shard {number} failed")
        path.with_suffix(".part").rename(path)
        print(f"{path.name} {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    asked = parser.parse_args()
    make(asked.folder, asked.first, asked.last)
