"""How fast activations are extracted: against the reference way, against the machine's own limit, and in what memory.

    python benchmarks/extraction.py [rounds] [clips]

Real speech (clips of about 5 s) and OpenAI's tiny.en, from WHISPER_SAE_SHARED (default ../shared/data). In every round
each way hears the same clips once, in an order of chance, so that a busy machine is busy for all; ratios are taken
within a round. The reference way: transformers' processor, the whole model (encoder and the decoder's start token) with
`output_hidden_states`, one clip after the other in 30 s each, tensors in Python lists that are joined in the end.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("WHISPER_SAE_SHARED") or PROJECT.parent / "shared" / "data")
MODEL = SHARED / "whisper-tiny.en"
CORPUS = SHARED / "speech" / "speechocean762"


def corpus(folder: Path, clips: int) -> Path:
    """Clips of 4 to 6 s, speaker after speaker, those first who have most of them, as a corpus of their own."""
    told = pd.read_csv(CORPUS / "metadata.csv", dtype=str, keep_default_na=False)
    told = told[told.duration_s.astype(float).between(4, 6)]
    many = told.groupby("speaker_id").speaker_id.transform("size")
    told = told.assign(many=-many).sort_values(["many", "speaker_id"], kind="stable")[:clips].drop(columns="many")
    for name in told.file_name:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CORPUS / name, folder / name)
    told.drop(columns=["split"], errors="ignore").to_csv(folder / "metadata.csv", index=False)
    return folder


def profile(place: Path, **fields):
    """What is measured: every layer's residual stream, stored in float16."""
    from whisper_sae import profiles

    return profiles.Profile(
        name="extraction", about="", model=str(MODEL), corpus=(str(place),), focus="encoder.2.resid", device="cpu"
    ) if not fields else replace(profile(place), **fields)  # fmt: skip


def ours(run, whisper, heard) -> int:
    """Record the clips into a folder, as a run does; the number of valid frames."""
    from whisper_sae.activations import extract, store
    from whisper_sae.model import whisper_model

    wanted = list(whisper_model.sites(whisper.config, run.sites))
    windows = extract.planned(run, whisper, heard)

    def hear(_numbers, ready):
        return whisper_model.record(whisper, whisper_model.mel(whisper, ready[0]), wanted), ready[1]

    with tempfile.TemporaryDirectory() as folder:
        return store.write(
            Path(folder) / "said", int(windows.heard.max()) + 1,
            lambda: (hear, extract.reader(whisper, heard, windows)),
            shard=run.shard_windows, batch=run.batch_windows, pieces=extract.pieces(whisper, windows),
        )["frames"]  # fmt: skip


@torch.no_grad()
def theirs(whole, processor, heard) -> int:
    """The reference way, by plain transformers; the number of valid frames among what it keeps."""
    from whisper_sae.data import clip_table

    layers, valid = [[] for _ in whole.model.encoder.layers], 0
    start = torch.tensor([[whole.config.decoder_start_token_id]])
    for path in heard.path:
        sound = clip_table.samples(path)
        mels = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        said = whole(mels, decoder_input_ids=start, output_hidden_states=True)
        for kept, hidden in zip(layers, said.encoder_hidden_states[1:], strict=True):
            kept.append(hidden.cpu())
        valid += -(-len(sound) // (2 * processor.hop_length))
    joined = [torch.cat(kept) for kept in layers]
    assert joined[0].shape[0] == len(heard)
    return valid


def seconds(work) -> tuple[float, object]:
    """How long it takes, and what it says."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def race(place: Path, rounds: int) -> None:
    """Valid frames a second of every way, and its ratio to the reference within each round."""
    from whisper_sae.experiments import pipeline
    from whisper_sae.model import whisper_model

    narrow = ["bfloat16"] if whisper_model.has_bfloat16(torch.device("cpu")) else []
    loaded = {
        precision: whisper_model.load(str(MODEL), "cpu", precision=precision) for precision in ["float32", *narrow]
    }
    heard = drawn(place)
    whole = WhisperForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = WhisperFeatureExtractor.from_pretrained(MODEL)
    ways = {"reference": lambda: theirs(whole, processor, heard)}
    for precision, whisper in loaded.items():
        for how in ("clip", "packed"):
            run = profile(place, windows=how, precision=precision)
            ways[f"{how}, {precision}"] = lambda run=run, whisper=whisper: ours(run, whisper, heard)
    rates = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    ours(profile(place), loaded["float32"], heard[:8])  # to warm up
    for _round in range(rounds):
        for name in rng.permutation(list(ways)):
            took, frames = seconds(ways[name])
            rates[name].append(frames / took)
    print(f"{len(heard)} clips of {heard.duration.mean():.1f} s, {rounds} rounds\n")
    print("| way | valid frames/s | ratio to the reference: median (least – most) |\n|---|--:|--:|")
    for name, found in rates.items():
        ratio = sorted(a / b for a, b in zip(found, rates["reference"], strict=True))
        median, least, most = statistics.median(ratio), ratio[0], ratio[-1]
        print(f"| {name} | {statistics.median(found):,.0f} | {median:.1f} ({least:.1f} – {most:.1f}) |")
    print()
    with tempfile.TemporaryDirectory() as data:
        os.environ["WHISPER_SAE_DATA"] = data
        from whisper_sae import cache

        cache.make(pipeline.clips(profile(place), 0))
        told = cache.make(pipeline.other_ways(profile(place), 0, most=24)).table("other_ways.csv")
        print("What it costs (cosine of each frame, its 5 % quantile, squared error as a share of the variance):\n")
        print(told.to_string(index=False, float_format=lambda x: f"{x:.4f}"), "\n")


def drawn(place: Path) -> pd.DataFrame:
    """The table of clips of a folder, all in one split."""
    from whisper_sae.data import clip_table

    return clip_table.read(place).assign(split="train", corpus="speech")


def roof(place: Path, rounds: int, windows: int = 4) -> None:
    """The share of the machine's matrix-multiply rate that the encoder reaches, the two measured in turn."""
    from whisper_sae.data import clip_table
    from whisper_sae.model import whisper_model
    from whisper_sae.sae import roofline

    narrow = ["bfloat16"] if whisper_model.has_bfloat16(torch.device("cpu")) else []
    print("A window costs 2·2T·3M·d + 2·T·3d·d + L·(2·T·(4·d² + 2·d·m) + 4·T²·d) operations:")
    for precision in ["float32", *narrow]:
        whisper = whisper_model.load(str(MODEL), "cpu", precision=precision)
        cost, last = roofline.operations(whisper.config), [f"encoder.{whisper.config.encoder_layers - 1}.resid"]
        mels = whisper_model.mel(whisper, [clip_table.samples(path) for path in drawn(place).path[:windows]])
        whisper_model.record(whisper, mels, last)
        rows = []
        for _round in range(rounds):
            rate = max(roofline.multiplied("cpu", whisper.config, precision), square(precision))
            took, _ = seconds(lambda w=whisper, m=mels, s=last: whisper_model.record(w, m, s))
            rate = (rate + max(roofline.multiplied("cpu", whisper.config, precision), square(precision))) / 2
            rows.append((rate, cost * windows / took))
        share = sorted(reached / rate for rate, reached in rows)
        rate, reached = (statistics.median(column) / 1e9 for column in zip(*rows, strict=True))
        print(
            f"{precision}: {cost / 1e9:.1f} billion a window; products {rate:,.0f} GFLOP/s, encoder {reached:,.0f} "
            f"GFLOP/s, share {statistics.median(share):.0%} ({share[0]:.0%} – {share[-1]:.0%})"
        )
    print()


def square(precision: str, size: int = 2048, times: int = 3) -> float:
    """Operations a second in a large square product."""
    a = torch.randn(size, size).to(getattr(torch, precision))
    a @ a
    took, _ = seconds(lambda: [a @ a for _ in range(times)])
    return 2 * times * size**3 / took


def memory(clips: int) -> None:
    """Peak memory of a run over 1, 2 and 4 times the clips, each in a process of its own."""
    found = []
    for times in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            place = corpus(Path(folder) / "speech", times * clips)
            environment = os.environ | {"WHISPER_SAE_DATA": f"{folder}/data"}
            command = [sys.executable, __file__, "--memory", str(place)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout.decode().strip().splitlines()[-1]))
    middle = statistics.mean(row["peak MB"] for row in found)
    for times, row in zip((1, 2, 4), found, strict=True):
        more = row["peak MB"] / middle - 1
        size, peak = row["MB on disk"], row["peak MB"]
        print(f"{times}×: {row['clips']} clips, {size} MB on disk, peak {peak} MB, {more:+.1%} of the mean")


def one_memory(place: str) -> dict:
    """Make one store here and say what it took."""
    from whisper_sae import cache
    from whisper_sae.experiments import pipeline

    run = profile(Path(place))
    cache.make(pipeline.clips(run, 0))
    step = cache.make(pipeline.activations(run, 0))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))  # kB
    size = sum(path.stat().st_size for path in step.path.rglob("*.npy")) / 1e6
    return {"clips": int(step.facts["windows"]), "peak MB": round(peak / 1024), "MB on disk": round(size)}


def main(rounds: int = 5, clips: int = 24) -> None:
    """All three, one after the other."""
    if not CORPUS.is_dir():
        sys.exit(f"no real data at {SHARED}; WHISPER_SAE_SHARED says where it is")
    with tempfile.TemporaryDirectory() as folder:
        place = corpus(Path(folder) / "speech", clips)
        race(place, rounds)
        roof(place, rounds)
    memory(clips)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(one_memory(sys.argv[2])))
    else:
        main(*map(int, sys.argv[1:]))
