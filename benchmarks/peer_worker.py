"""One library training one dictionary, told what to do over stdin: a line of JSON in, a line of JSON out.

`peers.py` starts one of these for each library, all with the same data, and takes them in turn. The first argument says
who it is. Every library gets the same batches, Adam, the same rate and warm-up, and counts latents as dead after the
same number of tokens; everything else is as its authors have it.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # 2 MiB pages for all libraries, as whisper_sae sets them


class Ours:
    """whisper_sae, as its notebooks use it."""

    def __init__(self, variant, d, latents, k, rate, steps, dead_tokens, first):
        from whisper_sae.sae import architectures, training

        self.coder = architectures.create(variant, d, latents, k, seed=11)
        self.coder.start_on(first)
        self.learner = training.Learner(self.coder, training.Settings(steps, rate, dead_tokens))

    def step(self, x):
        self.learner.step(x)

    def ready(self, batches):
        if hasattr(self.coder, "calibrate"):
            self.coder.calibrate(batches)
        self.coder.eval()

    def codes(self, x):
        return self.coder.encode(x)

    def say(self, x):
        return self.coder(x)


class OursInFloat32(Ours):
    """whisper_sae without bfloat16."""

    def __init__(self, *options):
        from whisper_sae.sae import architectures

        architectures.has_bfloat16 = lambda device: False
        super().__init__(*options)


class Sparsify:
    """EleutherAI sparsify, with the loop of its trainer and Adam."""

    def __init__(self, variant, d, latents, k, rate, steps, dead_tokens, first):
        from sparsify import SparseCoder
        from sparsify.config import SparseCoderConfig

        torch.manual_seed(11)
        self.coder = SparseCoder(d, SparseCoderConfig(num_latents=latents, k=k))
        self.coder.b_dec.data = first.mean(dim=0)
        self.optimiser = torch.optim.Adam(self.coder.parameters(), lr=rate, betas=(0.9, 0.999))
        self.shape = torch.optim.lr_scheduler.LambdaLR(self.optimiser, shape(steps))
        self.silent, self.dead_tokens = torch.zeros(latents), dead_tokens

    def step(self, x):
        out = self.coder(x, dead_mask=self.silent > self.dead_tokens)
        (out.fvu + out.auxk_loss / 32).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(self.coder.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.shape.step()
        self.coder.set_decoder_norm_to_unit_norm()
        self.silent += len(x)
        self.silent[out.latent_indices.flatten()] = 0

    def ready(self, batches):
        self.coder.eval()

    def codes(self, x):
        found = self.coder.encode(x)
        return torch.zeros(len(x), self.coder.num_latents).scatter(1, found.top_indices, found.top_acts)

    def say(self, x):
        return self.coder(x).sae_out


class SaeLens:
    """SAELens, one step of its trainer."""

    def __init__(self, variant, d, latents, k, rate, steps, dead_tokens, first):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(11)
        kind, config = {
            "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
            "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
        }[variant]
        options = {"use_sparse_activations": False}
        self.coder = kind(config(d_in=d, d_sae=latents, k=k, device="cpu", **options))
        told = SAETrainerConfig(
            total_training_samples=steps * len(first), train_batch_size_samples=len(first), lr=rate,
            lr_warm_up_steps=round(0.05 * steps), lr_decay_steps=round(0.3 * steps), lr_end=0.0,
            dead_feature_window=max(1, dead_tokens // len(first)),
        )  # fmt: skip
        self.trainer = SAETrainer(told, self.coder, iter(()))

    def step(self, x):
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def ready(self, batches):
        self.coder.eval()

    def codes(self, x):
        if hasattr(self.coder, "topk_threshold"):  # as it is saved: a JumpReLU
            pre = self.coder.encode_with_hidden_pre(x)[1]
            return pre * (pre > self.coder.topk_threshold)
        return self.coder.encode(x)

    def say(self, x):
        return self.coder.decode(self.codes(x))


class DictionaryLearning:
    """dictionary_learning, one update of its trainers."""

    def __init__(self, variant, d, latents, k, rate, steps, dead_tokens, first):
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer

        kind = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[variant]
        self.trainer = kind(
            steps=steps, activation_dim=d, dict_size=latents, k=k, layer=0, lm_name="none", lr=rate, seed=11,
            warmup_steps=round(0.05 * steps), decay_start=round(0.7 * steps), device="cpu",
            threshold_start_step=min(1000, steps // 2),
        )  # fmt: skip
        self.trainer.dead_feature_threshold = dead_tokens
        self.number = 0

    def step(self, x):
        self.trainer.update(self.number, x)
        self.number += 1

    def ready(self, batches):
        self.trainer.ae.eval()

    def codes(self, x):
        return self.trainer.ae.encode(x, use_threshold=type(self.trainer).__name__ == "BatchTopKTrainer")

    def say(self, x):
        return self.trainer.ae.decode(self.codes(x))


LIBRARIES = {"ours": Ours, "ours, float32": OursInFloat32, "sparsify": Sparsify, "SAELens": SaeLens,
             "dictionary_learning": DictionaryLearning}  # fmt: skip


def peak_memory():
    """The most memory this process has held, in MB. (`ru_maxrss` begins with that of the process that started it.)"""
    told = Path("/proc/self/status").read_text()
    return int(told.split("VmHWM:")[1].split()[0]) / 1024


def shape(steps):
    """Warm-up over 5 % of the steps, a line down over the last 30 %: what ours does."""
    return lambda step: min(1.0, (step + 1) / max(1, round(0.05 * steps)), (steps - step) / max(1, round(0.3 * steps)))


def main(name, variant, data, latents, k, batch, rate, steps, dead_tokens):
    frames = np.load(data, mmap_mode="r")
    held, seen = frames[:20_000], frames[20_000:]
    scale = float(np.sqrt(frames.shape[1] / np.square(seen[:20_000], dtype=np.float64).sum(axis=1).mean()))
    rng = np.random.default_rng(5)  # nothing that the data or a model was made with
    order = np.concatenate([rng.permutation(len(seen)) for _ in range(-(-steps * batch // len(seen)))])
    take = lambda rows: torch.from_numpy(np.asarray(rows, dtype=np.float32)) * scale  # noqa: E731
    library = LIBRARIES[name](variant, frames.shape[1], latents, k, rate, steps, dead_tokens, take(seen[:batch]))
    wide, out = torch.randn(frames.shape[1], latents), torch.empty(batch, latents)
    done = 0
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {}
        if asked["do"] == "steps":
            spent, floor = [], []
            for _ in range(min(asked["n"], steps - done)):
                x = take(seen[np.sort(order[done * batch : (done + 1) * batch])])
                start = time.perf_counter()
                library.step(x)
                spent.append(time.perf_counter() - start)
                done += 1
                if asked.get("floor"):
                    start = time.perf_counter()
                    torch.mm(x, wide, out=out)
                    floor.append(time.perf_counter() - start)
            answer = {"ms": 1000 * statistics.median(spent), "done": done}
            answer |= {"floor_ms": 1000 * statistics.median(floor)} if floor else {}
        elif asked["do"] == "score":
            library.ready(take(seen[i * 4096 : (i + 1) * 4096]) for i in range(8))
            answer = score(library, take(held), take(seen[:80_000]))
        answer["rss_mb"] = peak_memory()
        print("ANSWER", json.dumps(answer), flush=True)


@torch.no_grad()
def score(library, held, some):
    """Explained variance, L0 and share of latents that never fire: the first two on held-out frames."""
    error, l0, fired = 0.0, 0.0, 0
    for x in held.split(2000):
        error += (x - library.say(x)).double().square().sum().item()
        l0 += (library.codes(x) > 0).sum().item()
    for x in some.split(2000):
        fired = fired + (library.codes(x) > 0).sum(dim=0)
    spread = (held - held.mean(dim=0)).double().square().sum().item()
    return {"ev": 1 - error / spread, "l0": l0 / len(held), "dead": float((fired == 0).float().mean())}


if __name__ == "__main__":
    name, variant, data, latents, k, batch, rate, steps, dead_tokens = sys.argv[1:]
    main(name, variant, data, int(latents), int(k), int(batch), float(rate), int(steps), int(dead_tokens))
