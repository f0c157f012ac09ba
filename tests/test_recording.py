"""One pass gives the same as several, whoever asks first; whoever goes on from a killed one writes the same bytes."""

import functools
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from whisper_sae import cache, profiles, shards
from whisper_sae.activations import extract, store
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, recording, sanity_checks
from whisper_sae.model import decoding, text, whisper_model

WHISPER, CORPUS = profiles.DEMO / "whisper", profiles.DEMO / "corpus"
MIDDLE = "encoder.1.mlp_hidden"
WINDOWS, BATCHES = 13, 7
"""Of the clips of `folder`, in shards of six windows and batches of two."""
pytestmark = pytest.mark.skipif(not (WHISPER / "model.safetensors").exists(), reason="the demo's model is not there")


@pytest.fixture
def folder(tmp_path):
    """Eleven clips of the demo, two without words, and one that is longer than a window."""
    place = tmp_path / "few"
    (place / "audio").mkdir(parents=True)
    clips = pd.read_csv(CORPUS / "metadata.csv", keep_default_na=False, dtype=str)
    some = pd.concat([clips[clips.kind == "speech"].iloc[::30].head(9), clips[clips.kind == "sound"].head(2)])
    for file in some.file_name:
        shutil.copy(CORPUS / file, place / file)
    sound = np.concatenate([clip_table.samples(place / file) for file in some.file_name])[: 9 * 16_000]
    soundfile.write(place / "audio" / "long.flac", sound, 16_000)
    more = some.iloc[[0]].assign(file_name="audio/long.flac", text="a long story")
    pd.concat([some.iloc[:3], more, some.iloc[3:]]).to_csv(place / "metadata.csv", index=False)
    return place


@pytest.fixture
def run(folder, data, run_for):
    """Of encoder and decoder, in shards of six windows, batches of two, pools of two batches."""
    sites = ("encoder.?.resid", "encoder.3.normed", "decoder.?.resid", "decoder.1.normed")
    found = run_for(WHISPER, folder, sites=sites, shard_windows=6)
    cache.make(pipeline.clips(found, 0))
    return found


@pytest.fixture(autouse=True)
def pools(monkeypatch):
    monkeypatch.setattr(recording, "POOL", 2)


@pytest.fixture
def passes(monkeypatch):
    """How many windows the encoder has heard at a time, in order; without those of the estimate."""
    monkeypatch.setattr(extract, "seconds_a_window", lambda *_: 0.0)
    load, counts = whisper_model.load, []

    @functools.wraps(load)
    def counted(*args, **named):
        whisper = load(*args, **named)
        whisper.encoder.register_forward_pre_hook(lambda _module, given: counts.append(len(given[0])))
        return whisper

    monkeypatch.setattr(whisper_model, "load", counted)
    return counts


def everything(run) -> dict[str, cache.Recipe]:
    return {
        "encoder": pipeline.activations(run, 0), "decoder": pipeline.decoded(run, 0),
        "transcripts": sanity_checks.transcripts(run, 0), "middle": pipeline.activations(pipeline.at(run, MIDDLE), 0),
    }  # fmt: skip


ORDERS = [
    ("transcripts", "encoder", "decoder", "middle"),
    ("encoder", "middle", "decoder", "transcripts"),
    ("decoder", "transcripts", "encoder", "middle"),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
def test_the_encoder_hears_every_window_once(run, passes, order):
    made = {name: cache.make(everything(run)[name]) for name in order}
    assert made["encoder"].facts["windows"] == WINDOWS and len(passes) == BATCHES
    assert len(manifests()) == 1


def test_sites_are_those_of_a_pass_of_their_own_bit_for_bit(run, monkeypatch, tmp_path):
    whisper = whisper_model.load(str(WHISPER), "cpu")
    together = {name: store.Activations(cache.make(recipe).path)
                for name, recipe in everything(run).items() if name != "transcripts"}  # fmt: skip
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    windows = extract.planned(run, whisper, heard)
    for name in ("encoder", "middle"):
        sites = list(together[name].sites)
        begin = lambda sites=sites: extract.listener(run, whisper, heard, windows, sites)  # noqa: E731
        store.write(tmp_path / name, len(windows), begin, shard=6, batch=2, pieces=extract.pieces(whisper, windows))
        apart = store.Activations(tmp_path / name)
        assert list(apart.sites) == sites
        assert {path.name for path in (tmp_path / name / "shard-00000").iterdir()} == {
            path.name for path in (together[name].folder / "shard-00000").iterdir()
        }
        for file in sorted(tmp_path.glob(f"{name}/*.*")) + sorted(tmp_path.glob(f"{name}/shard-*/*")):
            there = together[name].folder / file.relative_to(tmp_path / name)
            assert file.read_bytes() == there.read_bytes(), file
    kept = together["decoder"]
    step = cache.need(pipeline.decoded(run, 0))
    assert step.facts["clips_left_out"] == 1 and step.facts["windows"] == len(heard) - 1
    tokens, told = step.table("tokens.csv"), step.table("windows.csv")
    for number in range(len(told)):
        ids = torch.tensor([tokens[tokens.window == number].token_id.tolist()])
        sound = pipeline.sound_of(heard, told, number)
        alone = whisper_model.record(whisper, whisper_model.mel(whisper, [sound]), list(kept.sites), ids)
        for site in kept.sites:
            np.testing.assert_allclose(kept.window(site, number), alone[site][0], rtol=2**-9, atol=2e-3)


def test_transcripts_are_those_of_windows_one_by_one(run):
    whisper, step = whisper_model.load(str(WHISPER), "cpu"), cache.make(sanity_checks.transcripts(run, 0))
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    windows = clip_table.windows(heard, whisper.window)
    assert windows["clip"].duplicated().any()
    alone = [
        text.transcribe(whisper, whisper_model.mel(whisper, [pipeline.sound_of(heard, windows, row)]))[0]
        for row in range(len(windows))
    ]
    right = pd.Series(alone).groupby(windows["clip"]).agg(" ".join)
    assert step.table("transcripts.csv").heard.tolist() == right.tolist() and right.nunique() > 6


def test_files_are_linked_and_take_no_room(run):
    steps = [cache.make(recipe) for recipe in everything(run).values()]
    for step in steps:
        step.verify()
        for path in step.path.rglob("*.resid.npy"):
            assert path.stat().st_nlink == 2


def test_where_there_are_no_hard_links_files_are_copied(run, monkeypatch):
    def refused(*_):
        raise OSError("no hard links here")

    right = cache.make(pipeline.activations(run, 0))
    shutil.rmtree(right.path)
    monkeypatch.setattr(os, "link", refused)
    step = cache.make(pipeline.activations(run, 0))
    assert step.manifest["files"] == right.manifest["files"]
    assert (step.path / "shard-00000" / "encoder.1.resid.npy").stat().st_nlink == 1


def test_a_site_that_is_added_is_recorded_without_the_others(run, passes):
    few = replace(run, sites=("encoder.1.resid", "decoder.0.resid"))
    cache.make(pipeline.activations(few, 0))
    cache.make(pipeline.activations(run, 0)), cache.make(pipeline.decoded(run, 0))
    holds = [set(step["params"]["holds"]) for step in manifests()]
    assert len(holds) == 2 and not holds[0] & holds[1]
    assert {"transcripts", MIDDLE, "encoder.1.resid", "decoder.0.resid"} in holds
    assert pipeline.activations(few, 0).key == pipeline.activations(replace(few, sites=("encoder.1.resid",)), 0).key


def manifests() -> list[dict]:
    return [json.loads(path.read_text()) for path in (cache.root() / "steps" / "recording").glob("*/manifest.json")]


def test_a_recording_that_has_changed_is_not_linked_again(run, capsys):
    right = cache.make(pipeline.activations(run, 0))
    file = right.path / "shard-00000" / "encoder.1.resid.npy"
    spoilt = bytearray(file.read_bytes())
    spoilt[-1] ^= 1
    file.write_bytes(spoilt)  # under both names
    shutil.rmtree(right.path)
    again = cache.make(pipeline.activations(run, 0))
    again.verify()
    assert again.manifest["files"] == right.manifest["files"] and "not what was written" in capsys.readouterr().err


def test_a_twin_and_packed_windows_are_recorded_as_before(run, passes):
    twin = cache.make(pipeline.activations(pipeline.twin(run), 0))
    held = manifests()[0]["params"]["holds"]
    assert [name for name in held if name.startswith("encoder")] == list(twin.facts["sites"])
    assert recording.TRANSCRIPTS not in held and any(name.startswith("decoder") for name in held)
    packed = replace(run, windows="packed")
    cache.make(pipeline.activations(packed, 0))
    passes.clear()
    cache.make(pipeline.decoded(packed, 0)), cache.make(sanity_checks.transcripts(packed, 0))
    assert len(passes) == BATCHES, "decoder and transcripts in one pass over clips heard alone"


@pytest.mark.parametrize("survived", [1, 3, 4])
def test_a_pass_that_was_cut_off_goes_on_and_writes_the_same_bytes(run, monkeypatch, survived):
    """Within a pool, at the end of a shard, in the next one."""
    monkeypatch.setattr(extract, "seconds_a_window", lambda *_: 0.0)
    right = {name: cache.make(recipe) for name, recipe in everything(run).items()}
    monkeypatch.setenv("WHISPER_SAE_DATA", str(cache.root()) + "-again")
    cache.make(pipeline.clips(run, 0))
    write, calls = text.write, []

    @functools.wraps(write)
    def stop(*args):
        calls.append(1)
        if len(calls) == survived:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(text, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.make(sanity_checks.transcripts(run, 0))
    work = next((cache.root() / "steps" / "recording").glob(".*.work"))
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("shard-*")}
    assert len(kept) == (survived - 1) // 2
    monkeypatch.setattr(text, "write", functools.wraps(write)(lambda *args: write(*args)))
    for name, recipe in everything(run).items():
        step = cache.make(recipe)
        assert step.manifest["files"] == right[name].manifest["files"] and step.facts == right[name].facts, name
    step = next((cache.root() / "steps" / "recording").glob("[!.]*"))
    assert {name: (step / name).stat().st_mtime_ns for name in kept} == kept


def test_transcripts_end_at_the_limit_of_each_window(run, monkeypatch):
    monkeypatch.setattr(decoding, "SPARE", 2)
    monkeypatch.setattr(decoding, "TOKENS_A_SECOND", 1)
    cache.make(sanity_checks.transcripts(run, 0))
    place = next((cache.root() / "steps" / "recording").glob("[!.]*"))
    windows = pd.read_csv(place / "windows.csv")
    tokens = np.concatenate([np.load(shards.place(place, number) / "tokens.npy") for number in range(3)])
    assert len(tokens) == WINDOWS
    count = (tokens >= 0).sum(axis=1)
    limits = np.ceil(2 + windows.samples / 16_000)
    assert (count <= limits).all() and (count == limits).any()


def test_the_line_before_a_pass_counts_the_decoder(run, capsys):
    cache.make(pipeline.activations(run, 0))
    assert " s of it in the decoder" in capsys.readouterr().err
