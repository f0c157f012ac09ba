"""One table of clips whatever the corpus calls its columns, and sound that keeps its length and its pitch."""

import math
import os
import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import cache
from whisper_sae.data import clip_table, corpora
from whisper_sae.experiments import pipeline


def tone(frequency: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def level(sound: np.ndarray) -> float:
    """Root mean square away from the ends, where filters ring."""
    middle = sound[len(sound) // 10 : -len(sound) // 10]
    return float(np.sqrt(np.mean(np.square(middle, dtype=np.float64))))


def pitch(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), n=1 << 18))
    return float(spectrum.argmax() * clip_table.RATE / (1 << 18))


# ------------------------------------------------------------------------------------------------ the table


@pytest.fixture
def table_of(tmp_path):
    """Writes a corpus of half a second a clip with this `metadata.csv`: `table_of(text)`."""

    def write(text: str, encoding="utf-8"):
        (tmp_path / "metadata.csv").write_text(text, encoding=encoding)
        for line in text.splitlines()[1:]:
            soundfile.write(tmp_path / line.split(",")[0].strip('"'), tone(440, 16_000), 16_000)
        return clip_table.read(tmp_path)

    return write


def test_the_table_has_its_columns_whatever_the_corpus_has(table_of, tmp_path):
    clips = table_of("file_name\na.flac\nb.wav\n")
    assert list(clips.columns) == clip_table.COLUMNS
    assert clips.id.tolist() == ["a", "b"]
    assert clips.path.tolist() == [str(tmp_path / "a.flac"), str(tmp_path / "b.wav")]
    assert clips.duration.tolist() == [0.5, 0.5]
    assert (clips[["text", "speaker", "gender", "accent", "split"]] == "").all(axis=None)


@pytest.mark.parametrize(
    ("column", "alias"), [(name, alias) for name, known in corpora.ALIASES.items() for alias in known]
)
def test_aliases(table_of, column, alias):
    value = "test" if column == "split" else "Ünder"
    clips = table_of(f"file_name,{alias}\na.flac,{value}\n")
    assert list(clips.columns) == clip_table.COLUMNS
    assert clips[column].tolist() == [value]


def test_columns_of_ones_own_are_kept(table_of):
    clips = table_of("file_name,duration,speaker_id,id,sentence,text\na.flac,9,s,7,x,y\n")
    assert list(clips.columns) == [*clip_table.COLUMNS, "duration_given", "id_given", "sentence"]
    assert clips.loc[0, ["id", "duration", "speaker", "text"]].tolist() == ["a", 0.5, "s", "y"]
    assert clips.loc[0, ["duration_given", "id_given", "sentence"]].tolist() == ["9", "7", "x"]


def test_words_stay_words(table_of):
    clips = table_of('file_name,text,speaker\na.flac,"NA, they said",007\nb.flac,null,1e3\n')
    assert clips.text.tolist() == ["NA, they said", "null"]
    assert clips.speaker.tolist() == ["007", "1e3"]


def test_a_table_that_a_spreadsheet_has_saved(table_of):
    assert table_of("file_name,text\na.flac,Grüße\n", encoding="utf-8-sig").text.tolist() == ["Grüße"]


def test_ids_are_never_shared(table_of):
    assert table_of("file_name\na.flac\na.wav\n").id.tolist() == ["a.flac", "a.wav"]


def test_files_in_folders(table_of, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert table_of("file_name\ndeep/er/a.b.flac\n").id.tolist() == ["deep/er/a.b"]


def test_join_keeps_corpora_apart(corpus):
    one, two = corpus("one", voices=2, clips=1, extra=True), corpus("two", voices=2, clips=2, splits=False)
    alone = clip_table.join({"one": clip_table.read(one)})
    assert alone.id.tolist() == ["audio/v00_0", "audio/v01_0"]
    assert alone.speaker.tolist() == ["v00", "v01"]
    both = clip_table.read(two)
    both.loc[0, "speaker"] = ""
    joined = clip_table.join({"one": clip_table.read(one), "two": both})
    assert joined.corpus.tolist() == ["one"] * 2 + ["two"] * 4
    assert joined.id.tolist()[:3] == ["one/audio/v00_0", "one/audio/v01_0", "two/audio/v00_0"]
    assert joined.id.is_unique
    assert joined.speaker.tolist() == ["one/v00", "one/v01", "", "two/v00", "two/v01", "two/v01"]
    assert joined.mood.tolist() == ["", "", "", "", "", ""]
    assert joined.room.tolist() == ["0", "0", "", "", "", ""]
    assert joined.index.tolist() == list(range(6))


def test_digest_sees_every_byte(corpus, tmp_path):
    folder = corpus(voices=2, clips=2)
    before = clip_table.digest(folder)
    assert clip_table.digest(shutil.copytree(folder, tmp_path / "moved")) == before
    (folder / "notes.txt").write_text("not of the corpus")
    assert clip_table.digest(folder) == before
    path = folder / "audio" / "v01_1.flac"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = clip_table.digest(folder)
    assert changed != before
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("clip 1", "clip one"))
    assert clip_table.digest(folder) not in (before, changed)


def test_balance(corpus):
    clips = clip_table.read(corpus(voices=3, clips=2))
    clips.loc[0, "speaker"] = ""
    found = clip_table.balance(clips, "gender")
    assert found.gender.tolist() == ["female", "male"]
    assert found.clips.tolist() == [4, 2]
    assert found.speakers.tolist() == [2, 1]
    assert found.minutes.sum() * 60 == pytest.approx(clips.duration.sum())
    assert clip_table.balance(clips, "gender", "split").clips.sum() == 6


# ------------------------------------------------------------------------------------- splitting and drawing

SPLIT_OF = {f"s{n}": ("", "", "", "", "train", "validation", "test")[n % 7] for n in range(12)}


@st.composite
def tables(draw):
    """Tables of clips in which some speakers are placed by the corpus, on all of their clips or on some."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["", *SPLIT_OF]), st.sampled_from(["", "female", "male"]), st.booleans(), st.booleans()
            ),
            min_size=1,
            max_size=40,
        )
    )
    table = [
        (f"c{n}", who, gender, SPLIT_OF.get(who, "") if placed else "", "one" if first or who else "two")
        for n, (who, gender, placed, first) in enumerate(rows)
    ]
    return pd.DataFrame(table, columns=["id", "speaker", "gender", "split", "corpus"])


@given(tables(), st.integers(0, 5))
def test_splits_share_no_speaker(clips, seed):
    found = clip_table.split(clips, seed)
    assert set(found.split) <= set(corpora.SPLITS)
    units = clips.speaker.where(clips.speaker != "", clips.id).nunique()
    if units > 2 or (clips.split != "").any():
        assert not clip_table.parts_share_speakers(found)
    elif len(clips) > 2:
        assert set(found.split) == set(corpora.SPLITS), "one or two speakers are in all parts"
    placed = clips.split != ""
    assert (found.split[placed] == clips.split[placed]).all()
    pd.testing.assert_frame_equal(found.drop(columns="split"), clips.drop(columns="split"))


@given(tables(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_split_depends_on_the_seed_and_on_nothing_else(clips, seed, random):
    found = clip_table.split(clips, seed)
    pd.testing.assert_frame_equal(found, clip_table.split(clips.copy(), seed))
    order = list(clips.index)
    random.shuffle(order)
    again = clip_table.split(clips.loc[order].reset_index(drop=True), seed)
    assert dict(zip(again.id, again.split, strict=True)) == dict(zip(found.id, found.split, strict=True))


def many(speakers: int) -> pd.DataFrame:
    names = [f"s{n:03d}" for n in range(speakers) for _ in range(3)]
    gender = ["female" if int(name[1:]) % 2 else "male" for name in names]
    ids = [f"c{n}" for n in range(len(names))]
    return pd.DataFrame({"id": ids, "speaker": names, "gender": gender, "split": ""})


def test_splits_have_their_shares_in_each_gender():
    found = clip_table.split(many(200), seed=0).groupby(["gender", "split"]).speaker.nunique()
    for gender in ("female", "male"):
        assert found[gender].to_dict() == {"train": 80, "validation": 10, "test": 10}


def test_another_seed_draws_others():
    drawn = [tuple(clip_table.split(many(50), seed).split) for seed in range(4)]
    assert len(set(drawn)) == 4


def test_clips_without_speakers_are_split_too():
    clips = many(60).assign(speaker="")
    assert clip_table.split(clips, seed=0).split.value_counts().to_dict() == {
        "train": 144,
        "validation": 18,
        "test": 18,
    }


@given(tables(), st.integers(1, 40), st.integers(0, 5))
def test_nobody_is_drawn_twice_before_all_were_once(clips, most, seed):
    drawn = clip_table.draw(clips, most, seed)
    assert len(drawn) == min(most, len(clips))
    assert drawn.id.is_unique
    assert set(drawn.id) <= set(clips.id)
    voice = clips.speaker.where(clips.speaker != "", clips.id)
    has = voice.value_counts()
    got = voice[clips.id.isin(drawn.id)].value_counts().reindex(has.index, fill_value=0)
    left = got < has
    assert not left.any() or got[left].min() >= got.max() - 1


def test_drawing_is_repeatable_and_takes_all_if_asked():
    clips = many(20)
    assert clip_table.draw(clips, 7, 0).equals(clip_table.draw(clips, 7, 0))
    assert not clip_table.draw(clips, 7, 0).equals(clip_table.draw(clips, 7, 1))
    assert clip_table.draw(clips, 0, 0).equals(clips)
    assert clip_table.draw(clips, 10**6, 0).equals(clips)


# ------------------------------------------------------------------------------------------------ the sound


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_a_tone_stays_as_high_and_as_loud(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(440, rate), rate, subtype="FLOAT")
    sound = clip_table.samples(tmp_path / "a.wav")
    assert sound.dtype == np.float32
    assert len(sound) == 8_000
    assert pitch(sound) == pytest.approx(440, abs=0.5)
    assert level(sound) == pytest.approx(0.5 / math.sqrt(2), rel=0.01)


@pytest.mark.parametrize(
    ("rate", "frequency"), [(22_050, 8_500), (44_100, 8_500), (48_000, 10_000), (48_000, 15_000), (96_000, 30_000)]
)
def test_what_lies_too_high_vanishes_and_does_not_fold_back(tmp_path, rate, frequency):
    high = tone(frequency, rate)
    soundfile.write(tmp_path / "a.wav", high, rate, subtype="FLOAT")
    assert 20 * math.log10(level(clip_table.samples(tmp_path / "a.wav")) / level(high)) < -100


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_speech_band_is_flat(tmp_path, rate):
    for frequency in (100, 1_000, 3_000, 3_600) if rate == 8_000 else (100, 1_000, 3_000, 7_000, 7_200):
        soundfile.write(tmp_path / "a.wav", tone(frequency, rate), rate, subtype="FLOAT")
        assert 20 * math.log10(level(clip_table.samples(tmp_path / "a.wav")) / 0.5 * math.sqrt(2)) == pytest.approx(
            0, abs=0.05
        )


def test_16_khz_is_left_alone(tmp_path):
    sound = tone(440, 16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(clip_table.samples(tmp_path / "a.wav"), sound)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_stereo_is_averaged_and_as_long_as_mono(tmp_path, rate):
    left, right = tone(440, rate), tone(1_000, rate)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", (left + right) / 2, rate, subtype="FLOAT")
    two, one = clip_table.samples(tmp_path / "two.wav"), clip_table.samples(tmp_path / "one.wav")
    assert len(two) == len(one)
    np.testing.assert_allclose(two, one, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_sound_longer_than_a_block_is_read_as_a_whole(tmp_path, monkeypatch, rate):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", rng.normal(0, 0.1, (20_001, 2)), rate)
    whole = clip_table.samples(tmp_path / "a.flac")
    monkeypatch.setattr(clip_table, "BLOCK", 1_000)
    np.testing.assert_array_equal(clip_table.samples(tmp_path / "a.flac"), whole)
    assert clip_table.decoded(tmp_path / "a.flac") == 20_001 / rate


@pytest.mark.parametrize(("length", "why"), [(0xFFFFFFFF, "a stream"), (0x7FFFFFFF, "a stream"), (0, "off by 8")])
def test_a_wav_that_is_whole_and_says_something_else(tmp_path, length, why):
    """Programs that write to a pipe cannot know the length; others count the first 8 bytes in."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = (length if length > 0 else len(content)).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(clip_table.samples(path)) == 8_000, why


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 22_255, 44_100, 48_000, 48_001])
def test_what_is_heard_is_as_long_as_its_windows_say(tmp_path, rate):
    rng = np.random.default_rng(rate)
    shared = math.gcd(rate, 16_000)
    a_bit_over = pow(16_000 // shared, -1, rate // shared) or 1  # what is heard has the least of fractions
    for n in [1, 2, 5, 441, rate, a_bit_over, *rng.integers(1, 3 * rate, size=4)]:
        soundfile.write(tmp_path / "a.wav", np.zeros(n), rate)
        (tmp_path / "metadata.csv").write_text("file_name\na.wav\n")
        right = math.ceil(Fraction(int(n) * 16_000, rate))
        assert clip_table.windows(clip_table.read(tmp_path), 7_000).samples.sum() == right
        assert len(clip_table.samples(tmp_path / "a.wav")) == right


CLIPS = st.lists(
    st.tuples(st.integers(1, 300_000), st.sampled_from([8_000, 16_000, 22_050, 44_100, 47_999])), min_size=1
)


@given(CLIPS, st.integers(1_000, 100_000))
def test_windows_hold_every_sample_once(lengths, window):
    table = pd.DataFrame({"duration": [n / rate for n, rate in lengths]})
    found = clip_table.windows(table, window)
    assert list(found["clip"].unique()) == list(range(len(lengths)))
    for row, (n, rate) in enumerate(lengths):
        mine = found[found["clip"] == row]
        assert mine["first"].tolist() == [0, *np.cumsum(mine.samples)[:-1]]
        assert mine.samples.sum() == math.ceil(Fraction(n * 16_000, rate))
        assert (mine.samples[:-1] == window).all()
        assert 0 < mine.samples.iloc[-1] <= window


# ---------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("samples", "valid"), [(1, 1), (320, 1), (321, 2), (36_800, 115), (36_801, 116), (480_000, 1_500)]
)
def test_a_frame_begun_is_a_frame(samples, valid):
    found = clip_table.kinds(np.ones(samples), 320, 1_500)
    assert found.dtype == np.uint8
    assert found.shape == (1_500,)
    assert (found[:valid] != clip_table.PADDING).all()
    assert (found[valid:] == clip_table.PADDING).all()


def test_more_than_a_window_is_refused():
    with pytest.raises(ValueError, match="480,001 samples need 1501 frames, the window has 1500"):
        clip_table.kinds(np.zeros(480_001), 320, 1_500)


def test_speech_silence_padding():
    rng = np.random.default_rng(0)
    loud, pause = rng.normal(0, 0.1, 16_000), np.zeros(8_000)
    found = clip_table.kinds(np.concatenate([loud, pause, loud[:12_800]]), 320, 200)
    assert (
        found.tolist()
        == [clip_table.SPEECH] * 50 + [clip_table.SILENCE] * 25 + [clip_table.SPEECH] * 40 + [clip_table.PADDING] * 85
    )


@pytest.mark.parametrize(("below", "kind"), [(30, clip_table.SPEECH), (40, clip_table.SILENCE)])
def test_silence_is_35_db_below_the_loud_frames(below, kind):
    rng = np.random.default_rng(0)
    loud = rng.normal(0, 0.3, 16_000)
    quiet = rng.normal(0, 0.3 * 10 ** (-below / 20), 16_000)
    found = clip_table.kinds(np.concatenate([loud, quiet]), 320, 100)
    assert set(found[:50]) == {clip_table.SPEECH}
    assert set(found[50:]) == {kind}


def test_next_to_nothing_is_silence_however_alone():
    assert set(clip_table.kinds(np.zeros(3_200), 320, 10)) == {clip_table.SILENCE}
    hum = np.random.default_rng(0).normal(0, 10 ** (-80 / 20), 3_200)
    assert set(clip_table.kinds(hum, 320, 10)) == {clip_table.SILENCE}


def test_every_real_corpus_can_be_read(shared):
    """Headers only; what they say is what the metadata's authors measured."""
    folders = sorted(path.parent for path in (shared / "speech").glob("*/metadata.csv"))
    assert folders
    for folder in folders:
        clips = clip_table.read(folder)
        assert list(clips.columns[:8]) == clip_table.COLUMNS
        given = clips["duration_s"].astype(float)
        assert (clips.duration - given).abs().max() < 0.02, folder


def test_means_by_group_are_of_the_clips_that_have_the_label():
    clips = pd.DataFrame({"gender": ["female", "male", "", "male"], "room": list("aabb"), "f0": ["200", "90", "5", ""]})
    found = clip_table.means_by(clips, ["gender", "room"], ["f0"]).set_index(["label", "group"]).f0
    assert found.to_dict() == {
        ("gender", "female"): 200.0,
        ("gender", "male"): 90.0,
        ("room", "a"): 145.0,
        ("room", "b"): 5.0,
    }


@pytest.mark.parametrize("speakers", [3, 6, 12])
@pytest.mark.parametrize("seed", range(20))
def test_every_part_has_a_speaker_where_there_are_three(speakers, seed):
    clips = many(speakers)
    found = clip_table.split(clips, seed)
    assert set(found.split) == set(corpora.SPLITS) and (found.groupby("speaker").split.nunique() == 1).all()
    sounds = clips.assign(id="n" + clips.id, speaker="", gender="", corpus="sounds")  # do not stand in for people
    both = clip_table.split(pd.concat([clips.assign(corpus="people"), sounds], ignore_index=True), seed)
    assert set(both.split[both.speaker != ""]) == set(corpora.SPLITS)


def test_clips_of_one_or_two_speakers_are_drawn_and_a_given_split_stays():
    for speakers in (1, 2):
        found = clip_table.split(many(speakers), 0)
        assert set(found.split) == set(corpora.SPLITS) and clip_table.parts_share_speakers(found)
    assert not clip_table.parts_share_speakers(clip_table.split(many(3), 0))
    given = many(4)
    given.loc[given.speaker < "s002", "split"] = "train"
    found = clip_table.split(given, 0)
    assert (found.split[given.split != ""] == "train").all() and set(found.split) == set(corpora.SPLITS)
    assert set(clip_table.split(given.assign(split="train"), 0).split) == {"train"}


def test_a_sound_that_was_replaced_after_its_digest_is_not_read_under_the_old_one(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.wav"
    soundfile.write(path, rng.normal(0, 0.1, 8000), 16_000)
    before, stands = clip_table.digest(tmp_path), os.stat(path)
    sound = clip_table.samples(path)
    soundfile.write(path, rng.normal(0, 0.1, 8000), 16_000)
    with pytest.raises(clip_table.BadSpeech, match=r"a\.wav: has changed since the clips were listed"):
        clip_table.samples(path)
    assert clip_table.digest(tmp_path) != before
    assert not np.array_equal(clip_table.samples(path), sound)
    os.utime(path, ns=(stands.st_atime_ns, stands.st_mtime_ns))
    with pytest.raises(clip_table.BadSpeech, match="has changed"):
        clip_table.samples(path)


def test_labels_that_look_like_one_number_stay_apart(corpus, run_for, small_whisper, data):
    """01, 1 and 1.0 are three labels of a corpus, also when its table has been written and read again."""
    folder = corpus(voices=3, clips=1)
    table = pd.read_csv(folder / "metadata.csv", dtype=str).assign(room=["01", "1", "1.0"])
    table.to_csv(folder / "metadata.csv", index=False)
    run = run_for(small_whisper, folder)
    assert pipeline.table(run, cache.make(pipeline.clips(run, 0))).room.tolist() == ["01", "1", "1.0"]
