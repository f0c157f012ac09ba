"""The bundled demo: what the tables say agrees with the sounds, and the model reads them as its card says."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

DATA = Path(__file__).resolve().parents[1] / "data"
CORPUS, WHISPER = DATA / "demo" / "corpus", DATA / "demo" / "whisper"
pytestmark = pytest.mark.skipif(not (CORPUS / "metadata.csv").exists(), reason="the demo has not been built")


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(CORPUS / f"{name}.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def clips() -> pd.DataFrame:
    return table("metadata")


@pytest.fixture(scope="module")
def speech(clips) -> pd.DataFrame:
    return clips[clips.kind == "speech"]


@pytest.fixture
def build(monkeypatch):
    """Import a script of data/build by name, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(DATA / "build"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(DATA / "build")):
            del sys.modules[name]


def test_every_clip_is_16_khz_mono_and_short_enough_for_a_window(clips):
    for name in clips.file_name:
        info = soundfile.info(CORPUS / name)
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert 1 < info.duration < 8
    assert {path.name for path in (CORPUS / "audio").iterdir()} == {Path(name).name for name in clips.file_name}


def test_it_is_small_enough_for_git():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 12e6


def test_voices_are_balanced(speech):
    voices = speech.drop_duplicates("speaker")
    assert len(voices) == 48
    assert set(voices.groupby(["accent", "gender"]).size()) == {4}
    assert voices.accent.nunique() == 6
    assert (speech.groupby("speaker").size() == 10).all()
    assert voices.groupby(["accent", "gender", "mic", "null_label"]).size().tolist() == [1] * 48
    assert (speech.groupby("speaker")[["gender", "accent", "split", "null_label", "mic"]].nunique() == 1).all(axis=None)


def test_the_confounded_label_is_what_the_microphone_takes_from_the_highs(speech):
    tilt = speech.tilt_db.astype(float).groupby(speech.mic)
    assert tilt.max()["near"] < tilt.min()["far"]

    def highs(name):  # energy above 3 kHz, of all
        samples, rate = soundfile.read(CORPUS / name)
        power = np.abs(np.fft.rfft(samples)) ** 2
        return power[round(3000 * len(samples) / rate) :].sum() / power.sum()

    some = speech[speech.file_name.str.endswith("_0.ogg")]
    share = some.file_name.map(highs).groupby(some.mic).median()
    assert share["far"] < share["near"] / 2


def test_splits_share_no_speaker_and_no_sentence(speech):
    assert (speech.groupby("speaker").split.nunique() == 1).all()
    assert (speech.groupby("text").split.nunique() == 1).all()
    small = speech[speech.split != "train"].drop_duplicates("speaker")
    assert set(small.groupby(["split", "gender"]).size()) == {3}
    assert (small.groupby("split").accent.nunique() == 6).all()


def test_clips_without_speech_say_so(clips):
    sounds = clips[clips.kind == "sound"]
    assert (sounds.text == "").all()
    assert (sounds.label != "").all()
    assert sounds.label.nunique() >= 10
    assert not set(sounds.file_name) & set(table("phones").file_name)


def test_words_are_the_text_in_order(speech):
    words = table("words").sort_values(["file_name", "word_index"]).groupby("file_name").word.agg(" ".join)
    assert words.to_dict() == dict(zip(speech.file_name, speech.text, strict=True))


@pytest.mark.parametrize("name", ["phones", "words"])
def test_times_lie_within_the_sound_and_do_not_overlap(name):
    rows = table(name)
    length = {file: 1000 * soundfile.info(CORPUS / file).duration for file in rows.file_name.unique()}
    assert (rows.start_ms < rows.end_ms).all()
    assert (rows.end_ms <= rows.file_name.map(length)).all()
    for _, one in rows.groupby("file_name"):
        assert (one.start_ms.to_numpy()[1:] >= one.end_ms.to_numpy()[:-1] - 0.11).all()


def test_phones_lie_within_their_words():
    words = table("words").set_index(["file_name", "word_index"])
    phones = table("phones").join(words.add_suffix("_of_word"), on=["file_name", "word_index"])
    assert (phones.word == phones.word_of_word).all()
    assert (phones.start_ms >= phones.start_ms_of_word - 0.11).all()
    assert (phones.end_ms <= phones.end_ms_of_word + 0.11).all()


@pytest.mark.slow
def test_stops_and_fricatives_are_where_the_table_says(build):
    check = build("check_alignment")
    cases = check.measure(CORPUS)
    classes, phones = check.summary(cases, "class"), check.summary(cases, ["class", "phone"])
    assert (classes.cases >= 200).all()
    assert (classes.within >= 0.9).all(), classes
    assert (classes.chance < 0.4).all(), classes
    assert ((phones.within >= 0.9).groupby("class").sum() >= 5).all(), phones
    late = check.summary(check.measure(CORPUS, late=30), "class")
    assert (late.within < 0.1).all(), late


def test_pitch_is_the_voices_own(build, speech):
    f0, planted = speech.f0_hz.astype(float), build("voices").corpus_voices()
    of_speaker = f0.groupby(speech.speaker).transform("median")
    assert ((f0 / of_speaker - 1).abs() < 0.2).all()
    voices = pd.DataFrame([voice.as_row() for voice in planted]).set_index("speaker")
    voices["f0"] = f0.groupby(speech.speaker).median()
    women, men = (voices[voices.gender == gender] for gender in ("female", "male"))
    assert 55 < men.f0.min() < men.f0.max() < 150 < women.f0.min() < women.f0.max() < 320
    for some in (women, men):
        assert some.f0.div(some.tract).corr(some.pitch, method="spearman") > 0.6


model = pytest.mark.skipif(not (WHISPER / "model.safetensors").exists(), reason="the demo's model is not there")


@model
def test_the_model_is_half_precision_and_small():
    from safetensors import safe_open

    with safe_open(WHISPER / "model.safetensors", "np") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"}
    assert (WHISPER / "model.safetensors").stat().st_size < 10e6


@model
def test_plain_transformers_reproduces_the_card(monkeypatch, speech):
    monkeypatch.syspath_prepend(str(DATA / "build"))
    import card

    said_in_card = float(re.search(r"\| all \|.*\| ([\d.]+) \|", (WHISPER / "README.md").read_text())[1])
    some = speech[speech.split == "test"]
    heard = card.transcribe(WHISPER, [CORPUS / name for name in some.file_name])
    assert 100 * card.wer(some.assign(said=heard)) == pytest.approx(said_in_card, abs=5)
    stored = pd.read_csv(DATA / "demo" / "transcripts.csv", keep_default_na=False).set_index("file_name").said
    same = [stored[name] == text for name, text in zip(some.file_name, heard, strict=True)]
    assert sum(same) >= 0.95 * len(same)  # another CPU may round one word otherwise
    sys.modules.pop("card")
