"""Seconds and peak memory of every stage of a run, each stage in a process of its own.

    python benchmarks/stages.py data/profiles/real.toml [an empty folder to keep the results in]

Results go to an empty store, so that every stage is really done; the store's size is printed too.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def stage(profile: str, name: str) -> dict:
    """Make one stage here and say what it took."""
    from whisper_sae import cache, profiles
    from whisper_sae.experiments import pipeline, sae_comparison

    run = profiles.choose(profile)
    kind, _, site = name.partition(" ")
    recipe = {
        "clips": lambda: pipeline.clips(run, 0),
        "activations": lambda: pipeline.activations(run, 0),
        "dictionary": lambda: sae_comparison.dictionary(run, 0, site),
    }[kind]()
    started = time.perf_counter()
    step = cache.make(recipe)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB on Linux
    size = sum(path.stat().st_size for path in step.path.rglob("*") if path.is_file()) / 1e6
    return {"stage": name, "seconds": round(seconds, 1), "peak MB": round(peak), "MB on disk": round(size),
            **{key: step.facts[key] for key in ("frames", "fvu", "l0", "dead") if key in step.facts}}  # fmt: skip


def main(profile: str = "demo", keep: str = "") -> None:
    """Every stage in turn; one line of JSON each."""
    from whisper_sae import profiles
    from whisper_sae.model import whisper_model

    with tempfile.TemporaryDirectory() as folder:
        os.environ["WHISPER_SAE_DATA"] = place = keep or folder
        run = profiles.choose(profile)
        config = whisper_model.load(run.model, "cpu").config
        for name in [
            "clips",
            "activations",
            *(f"dictionary {site}" for site in whisper_model.sites(config, run.sites)),
        ]:
            command = [sys.executable, __file__, "--stage", profile, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            print(done.stdout.decode().strip().splitlines()[-1], flush=True)
        print(f"store: {sum(path.stat().st_size for path in Path(place).rglob('*') if path.is_file()) / 1e6:,.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(stage(*sys.argv[2:])))
    else:
        main(*sys.argv[1:])
