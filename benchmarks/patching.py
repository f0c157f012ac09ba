"""Edits of features, clip after clip: ours against a hook and `generate`, in one run, and that both write the same.

    python benchmarks/patching.py [--profile demo] [--clips 24] [--edits 6] [--rounds 5] [--site encoder.2.resid]

The naive way is what published notebooks do: for each edit and each clip, log-mel, a hook that encodes the layer's
output with the SAE and adds the edit's difference, and `generate`. Ours hears every clip once, codes it once, goes on
from the edited layer, in batches, and checks the plain transcript as a draft; that first hearing is counted. `ours, all
run` is told nothing about which clips an edit can touch, `ours` leaves out those in which the feature never fires.
Rounds are interleaved; medians of seconds, and of the ratio within each round. Features are drawn at random among those
that fire in a clip in two.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from whisper_sae import cache, profiles
from whisper_sae.causal import edits, patching
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, sae_comparison
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures


def naive(whisper, sounds, site, coder, features) -> dict:
    """A hook and `generate`, one clip at a time."""
    wrote = {}
    for feature in features:

        def see(x, feature=feature, length=None):
            f = coder.encode(x)
            told = x - f[..., feature, None] * coder.W_dec[feature]
            valid = torch.arange(x.shape[1]) < length
            return torch.where(valid[:, None], told, x)

        texts = []
        for sound in sounds:
            length = -(-len(sound) // whisper.samples_a_frame)
            with torch.no_grad(), whisper_model.at(whisper, {site: lambda x, n=length, see=see: see(x, length=n)}):
                mels = whisper_model.mel(whisper, [sound])
                mask = torch.ones(1, mels.shape[-1], dtype=torch.long)
                ids = whisper.whole.generate(mels, attention_mask=mask, do_sample=False, num_beams=1)
                texts += [one.strip() for one in whisper.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        wrote[f"silence {feature}"] = texts
    return wrote


def ours(whisper, sounds, site, coder, features, all_run: bool = False) -> dict:
    """From the sounds on: nothing is kept between two calls."""
    heard = patching.hear(whisper, sounds, [site])[site]
    coded = patching.Coded(heard, coder)
    changes = {f"silence {feature}": coded.edit(edits.silence([feature])) for feature in features}
    if all_run:
        changes = {name: replace(change, touched=None) for name, change in changes.items()}
    return patching.write(heard, changes)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--profile", default="demo")
    asked.add_argument("--clips", type=int, default=24)
    asked.add_argument("--edits", type=int, default=6)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--site", default="")
    told = asked.parse_args()
    run = profiles.choose(told.profile)
    site = told.site or run.focus
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    spoken = heard[(heard.text != "") & (heard.split != "train")].sample(told.clips, random_state=0)
    sounds = [clip_table.samples(path) for path in spoken.path]
    whisper = whisper_model.load(run.model, "cpu")
    coder = architectures.load(cache.need(sae_comparison.dictionary(run, 0, site)).path).requires_grad_(False)
    coded = patching.Coded(patching.hear(whisper, sounds, [site])[site], coder)
    often = [f for f in range(coder.d_sae) if 0.4 < coded.fires([f]).mean() < 0.6]
    features = np.random.default_rng(0).permutation(often)[: told.edits].tolist()
    ways = {
        "naive": lambda: naive(whisper, sounds, site, coder, features),
        "ours, all run": lambda: ours(whisper, sounds, site, coder, features, all_run=True),
        "ours": lambda: ours(whisper, sounds, site, coder, features),
    }
    for way in ways.values():  # what is first takes longer
        way()
    seconds, wrote = {name: [] for name in ways}, {}
    for _ in range(told.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            wrote[name] = way()
            seconds[name].append(time.perf_counter() - started)
    pairs = len(sounds) * len(features)
    print(f"{site}, {len(sounds)} clips × {len(features)} edits, {torch.get_num_threads()} threads")
    for name, taken in seconds.items():
        ratio = statistics.median(first / mine for first, mine in zip(seconds["naive"], taken, strict=True))
        same = sum(a == b for key in wrote["naive"] for a, b in zip(wrote["naive"][key], wrote[name][key], strict=True))
        rate = pairs / statistics.median(taken)
        print(f"{name:14} {rate:7.1f} clips/s   {ratio:5.1f} × naive   {same} of {pairs} texts the same")


if __name__ == "__main__":
    main()
