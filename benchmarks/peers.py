"""A training step of ours beside those of the peers, and what each has learnt after the same tokens.

    WHISPER_SAE_PEERS=/path/to/venv/bin/python python benchmarks/peers.py [--data frames.npy] [--latents 3072]

Every library runs in a process of its own, all alive, taken in turn: each round times a few steps of each, and in the
same process, between the steps, GEMM-out: one float32 product of the encoder's size into a buffer that is there. What
counts is the ratio of the two in a round, and its median over the rounds. All have the same tuned malloc and OpenMP.
Data, batches and models are drawn from different seeds. `--data` is any array (frame, width): frames of a real site,
say; without it a synthetic world of 2,000 features is drawn. The peers' environment: tests/peers-requirements.txt.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parents[1]
WHO = [("ours", "topk"), ("ours", "batchtopk"), ("ours, float32", "topk"), ("ours, float32", "batchtopk"),
       ("sparsify", "topk"), ("SAELens", "topk"), ("SAELens", "batchtopk"), ("dictionary_learning", "topk"),
       ("dictionary_learning", "batchtopk")]  # fmt: skip
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
         "GOMP_SPINCOUNT": "10000"}  # fmt: skip


class Worker:
    """A library in its own process."""

    def __init__(self, python, name, variant, *options):
        command = [python, str(PROJECT / "benchmarks" / "peer_worker.py"), name, variant, *map(str, options)]
        environment = {**os.environ, **TUNED, "PYTHONPATH": str(PROJECT), "WANDB_MODE": "disabled"}
        self.label = f"{name}: {variant}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"{self.label}: {self.process.stderr.read()[-1500:]}")


def world(path: Path) -> None:
    """220,000 frames of 384 with some 20 of 2,000 features in each."""
    sys.path.insert(0, str(PROJECT))
    from whisper_sae.sae import synthetic

    drawn = synthetic.world(features=2000, width=384, l0=20.0, power=0.9, together=0.0, noise=0.05, seed=7)
    parts = [drawn.draw(4000, seed=100 + part)[0].numpy() for part in tqdm(range(55), desc="drawing frames")]
    np.save(path, np.concatenate(parts))


def run(asked) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        data = asked.data or Path(folder) / "world.npy"
        if not asked.data:
            world(data)
        steps = asked.tokens // asked.batch
        options = (data, asked.latents, asked.k, asked.batch, asked.rate, steps, asked.dead_tokens)
        ours = str(sys.executable)
        wanted = [who for who in WHO if not asked.only or any(part in who[0] for part in asked.only)]
        workers = [
            Worker(ours if name.startswith("ours") else asked.python, name, variant, *options)
            for name, variant in wanted
        ]
        rounds = {worker.label: [] for worker in workers}
        for _ in tqdm(range(asked.rounds + 1), desc="rounds"):
            for worker in workers:
                rounds[worker.label].append(worker.ask(do="steps", n=4, floor=True))
        rows = []
        for worker in tqdm(workers, desc="training"):
            timed = rounds[worker.label][1:]  # the first warms up
            row = {"library": worker.label, "step ms": statistics.median(r["ms"] for r in timed),
                   "÷ GEMM-out": statistics.median(r["ms"] / r["floor_ms"] for r in timed)}  # fmt: skip
            if not asked.time_only:
                worker.ask(do="steps", n=steps)
                row |= worker.ask(do="score")
            row["rss MB"] = row.pop("rss_mb", None) or worker.ask(do="none")["rss_mb"]
            rows.append(row)
            worker.process.kill()
        table = pd.DataFrame(rows)
        table.insert(3, "tokens/s", asked.batch / table["step ms"] * 1000)
        return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("WHISPER_SAE_PEERS"), help="python with the peers installed")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--dead-tokens", type=int, default=410_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--time-only", action="store_true")
    parser.add_argument("--only", nargs="*", help="libraries whose names hold one of these")
    asked = parser.parse_args()
    if not asked.python:
        parser.error("--python or WHISPER_SAE_PEERS: which python has the peers? see tests/peers-requirements.txt")
    print(run(asked).round(3).to_string(index=False))
