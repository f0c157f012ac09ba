"""Packed clips: several of one speaker in a window, and every row still knows its clip and its frame there."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import cache
from whisper_sae.activations import extract, packing, store
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline
from whisper_sae.model import whisper_model

FRAME, POSITIONS, GAP = 320, 100, 20


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", ""]), st.floats(0.001, 6)), min_size=1, max_size=30))
def test_every_piece_has_its_place(clips):
    heard = pd.DataFrame(clips, columns=["speaker", "duration"])
    windows = clip_table.windows(heard, FRAME * POSITIONS)
    packed = packing.pack(windows, heard.speaker, frame=FRAME, positions=POSITIONS, gap=GAP)
    same = packed.sort_values(["clip", "first"]).reset_index(drop=True)
    assert same[["clip", "first", "samples"]].equals(windows), "no sample is lost or heard twice"
    count = -(-packed.samples.to_numpy() // FRAME)
    end = packed["at"].to_numpy() + count
    assert (end <= POSITIONS).all()
    together = np.diff(packed.heard) == 0
    assert set(np.diff(packed.heard)) <= {0, 1} and packed.heard[0] == 0
    assert (packed["at"].to_numpy()[1:][together] == end[:-1][together] + GAP).all()
    assert (packed["at"].to_numpy()[1:][~together] == 0).all() and packed["at"][0] == 0
    who = heard.speaker[packed["clip"]].groupby(packed.heard.to_numpy())
    assert (who.nunique() == 1).all(), "a window holds one speaker"
    assert (who.size()[who.first() == ""] == 1).all(), "who is unknown is heard alone"


def test_sounds_lie_where_it_says():
    one, two = np.ones(700, np.float32), np.full(100, 2, np.float32)
    sound = packing.joined([one, two], [0, 5], FRAME)
    assert len(sound) == 5 * FRAME + 100
    assert (sound[:700] == 1).all() and (sound[700 : 5 * FRAME] == 0).all() and (sound[5 * FRAME :] == 2).all()
    kinds = packing.joined_kinds([clip_table.kinds(one, FRAME, 10), clip_table.kinds(two, FRAME, 10)], [0, 5])
    assert (kinds > 0).tolist() == [True] * 3 + [False] * 2 + [True] + [False] * 4


@pytest.fixture
def both(small_whisper, corpus, data, run_for):
    """The same clips heard alone and packed: (table of clips, {how: (windows, Activations, step)})."""
    folder, made = corpus(voices=3, clips=6), {}
    for how in ("clip", "packed"):
        run = run_for(
            small_whisper, folder, windows=how, dtype="float32", sites=("encoder.*.resid", "encoder.*.normed")
        )
        heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
        step = cache.make(pipeline.activations(run, 0))
        made[how] = step.table("windows.csv"), store.Activations(step.path), step
    return run, heard, made


def test_rows_are_those_of_the_clip_wherever_it_was_heard(both, loaded):
    _, heard, made = both
    windows, recorded, _ = made["packed"]
    assert (windows.groupby("heard").size() > 1).any() and (windows["at"] > 0).any(), "some are packed"
    assert len(windows) == len(recorded.spans) == len(recorded.kinds)
    for _, rows in windows.groupby("heard"):
        parts = [pipeline.sound_of(heard, windows, row) for row in rows.index]
        sound = packing.joined(parts, rows["at"].tolist(), FRAME)
        mel = whisper_model.mel(loaded, [sound], [[FRAME * at for at in rows["at"]]])
        live = whisper_model.record(loaded, mel, ["encoder.1.resid"])["encoder.1.resid"][0]
        for row, part in zip(rows.index, parts, strict=True):
            n, at = -(-len(part) // FRAME), windows["at"][row]
            np.testing.assert_allclose(recorded.window("encoder.1.resid", row), live[at : at + n], atol=2e-5)
            assert (recorded.kinds[row] == clip_table.kinds(part, FRAME, POSITIONS)).all()


def test_both_ways_hold_the_same_frames(both):
    _, _, made = both
    (alone, one, first), (packed, many, second) = made["clip"], made["packed"]
    assert first.facts["frames"] == second.facts["frames"] == len(many.rows("encoder.0.resid"))
    assert first.facts["frames_speech"] == second.facts["frames_speech"]
    assert second.facts["windows"] == packed.heard.max() + 1 < first.facts["windows"] == len(alone)
    total = second.facts["windows"] * POSITIONS
    assert second.facts["frames_padding"] == total - second.facts["frames"] < first.facts["frames_padding"]
    order = packed.sort_values(["clip", "first"]).index
    assert [len(many.window("encoder.0.resid", row)) for row in order] == one.spans[:, 2].tolist()
    ends = many.spans[:, 1] + many.spans[:, 2]
    same = np.diff(many.spans[:, 0]) == 0
    assert (many.spans[1:, 1][same] == ends[:-1][same]).all(), "rows follow each other as pieces do"


def test_a_normed_site_is_kept_with_what_undoes_it(both, loaded):
    _, _, made = both
    _, recorded, _ = made["packed"]
    assert "encoder.0.normed.moments" not in recorded.sites
    for row in (0, 3):
        said, right = (torch.tensor(recorded.window(f"encoder.0.{part}", row)) for part in ("normed", "resid"))
        back = whisper_model.unnormed(
            loaded.encoder.layer_norm, said, torch.tensor(recorded.moments("encoder.0.normed", row))
        )
        torch.testing.assert_close(back, right, atol=1e-5, rtol=0)


def test_what_another_way_changes_is_told(small_whisper, corpus, data, run_for):
    run = run_for(small_whisper, corpus(voices=3, clips=4))
    cache.make(pipeline.clips(run, 0))
    step = cache.make(pipeline.other_ways(run, 0, most=6))
    told = step.table("other_ways.csv").set_index(["heard", "site"])
    assert step.facts["clips"] == 6 and step.facts["speakers"] < 3, "few speakers, so that there is something to pack"
    packed = told.loc["packed"]
    assert (packed.frames > 50).all() and packed.cosine.between(0.2, 0.9999).all() and (packed.error > 0).all()
    if "bfloat16" in step.facts["ways"]:
        assert told.loc["bfloat16"].cosine.between(0.99, 1).all() and (told.loc["bfloat16"].error > 0).all()


def test_the_same_way_changes_nothing(small_whisper, corpus, data, run_for):
    run = run_for(small_whisper, corpus(voices=2, clips=3, splits=False))
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    told = extract.compare(run, {"again": run}, heard, ["encoder.1.resid"])
    assert told.error[0] == 0 and told.cosine[0] == pytest.approx(1, abs=1e-6)


def test_what_it_will_take_is_what_it_took(small_whisper, corpus, data, run_for, loaded, capsys):
    for how, dtype in [("clip", "float16"), ("packed", "float16"), ("clip", "bfloat16"), ("clip", "float32")]:
        sites = ("encoder.*.resid", "encoder.0.normed")
        run = run_for(small_whisper, corpus(f"voices {how} {dtype}"), windows=how, sites=sites, dtype=dtype)
        heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
        windows = extract.planned(run, loaded, heard)
        cost = extract.expected(run, loaded, windows, list(sites))
        step = cache.make(pipeline.activations(run, 0))
        assert (cost["windows"], cost["frames"]) == (step.facts["windows"], step.facts["frames"])
        size = sum(path.stat().st_size for path in step.path.rglob("*.npy"))
        assert size == pytest.approx(cost["bytes"], rel=0.05)
        assert 0 < cost["seconds"] < 60
        assert f"listening: {cost['windows']} windows, {cost['frames']:,} frames" in capsys.readouterr().err


def hooks_of(whisper: whisper_model.Whisper) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(part, kind)) for part in whisper.whole.modules() for kind in kinds)


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the model is asked to hear, in order: (windows, sites)."""
    asked, record = [], whisper_model.record

    @functools.wraps(record)
    def listened(whisper, mels, wanted):
        asked.append((len(mels), wanted))
        return record(whisper, mels, wanted)

    monkeypatch.setattr(whisper_model, "record", listened)
    return asked


def test_how_long_it_takes_is_measured_as_it_will_be_heard(loaded, asked):
    """A window alone, then a batch as the run has it; each twice, for the first of its kind takes longer."""
    random, hooks = torch.get_rng_state(), hooks_of(loaded)
    weights = {name: tensor.clone() for name, tensor in loaded.whole.state_dict().items()}
    assert extract.seconds_a_window(loaded, ["encoder.0.resid"], 4) > 0
    assert asked == [(count, ["encoder.0.resid"]) for count in (1, 1, 4, 4)]
    assert hooks_of(loaded) == hooks and not loaded.whole.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.whole.state_dict().items())


@pytest.mark.parametrize(("took", "counts"), [(0.01, [1, 1, 8, 8]), (0.5, [1, 1]), (60.0, [1])])
def test_a_slow_machine_is_not_asked_for_more_than_is_bearable(loaded, asked, monkeypatch, took, counts):
    moments = iter(range(1_000))
    monkeypatch.setattr(extract.time, "perf_counter", lambda: took * next(moments))
    found = extract.seconds_a_window(loaded, ["encoder.1.resid"], 8)
    assert [count for count, _ in asked] == counts
    assert found == pytest.approx(took / counts[-1])


def test_the_time_is_that_of_all_windows(small_whisper, corpus, run_for, loaded, monkeypatch):
    monkeypatch.setattr(extract, "seconds_a_window", lambda whisper, wanted, batch: 0.25 + batch)
    run = run_for(small_whisper, corpus(), batch_windows=16)
    for count in (1, 2, 40):
        windows = packing.alone(pd.DataFrame({"clip": range(count), "first": 0, "samples": 16_000}))
        cost = extract.expected(run, loaded, windows, ["encoder.1.resid"])
        assert cost["seconds"] == count * (0.25 + min(count, 16))


def test_a_full_disk_is_told_before_the_work(small_whisper, corpus, data, run_for, monkeypatch):
    run = run_for(small_whisper, corpus())
    cache.make(pipeline.clips(run, 0))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_000})())
    monkeypatch.setattr(store, "write", lambda *args: pytest.fail("work began"))
    with pytest.raises(store.NoRoom, match=r"GB are to be written and 1e-06 GB are free in .*WHISPER_SAE_DATA") as said:
        cache.make(pipeline.activations(run, 0))
    assert "\n" not in str(said.value)
