"""Phones are read as a corpus tells them, found at their moments, and bad tables are named."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table, frame_alignment
from whisper_sae.experiments import phone_tables, pipeline, sanity_checks
from whisper_sae.model import whisper_model

PLAIN = """file_name,start_ms,end_ms,phone
b.wav,100,180.5,t
a.wav,300,420,i
a.wav,120,300,s
"""


@pytest.fixture
def told(tmp_path):
    """Writes a table of phones and reads it: `told(text, name)`."""

    def read(text: str, name: str = "phones.csv") -> pd.DataFrame:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return frame_alignment.read(tmp_path)

    return read


# --------------------------------------------------------------------------------------------- the table


def test_rows_are_in_order_of_clip_and_time_in_seconds(told, tmp_path):
    found = told(PLAIN)
    assert list(found) == ["path", "start", "end", "phone"]
    assert found.path.tolist() == [str(tmp_path / name) for name in ("a.wav", "a.wav", "b.wav")]
    np.testing.assert_allclose(found[["start", "end"]], [[0.12, 0.3], [0.3, 0.42], [0.1, 0.1805]])
    assert found.phone.tolist() == ["s", "i", "t"]


@pytest.mark.parametrize("tab", [False, True], ids=["csv", "tsv"])
@pytest.mark.parametrize("unit", ["ms", "s"])
def test_commas_tabs_milliseconds_and_seconds_are_the_same(told, tab, unit):
    raw = pd.DataFrame(
        {"file_name": "a.wav", f"start_{unit}": [120, 300], f"end_{unit}": [300, 420], "phone": ["s", "i"]}
    )
    if unit == "s":
        raw[["start_s", "end_s"]] /= 1000
    found = told(raw.to_csv(sep="\t" if tab else ",", index=False), "phones.tsv" if tab else "phones.csv")
    np.testing.assert_allclose(found[["start", "end"]], [[0.12, 0.3], [0.3, 0.42]])


def test_of_several_tiers_only_one_of_phones_is_kept(told):
    rows = [("Word", 0, 5, "two"), ("Phoneme", 0, 2, "T"), ("Phoneme", 2, 5, "U"), ("Phonetic", 0, 1, "t")]
    rows += [("Phonetic", 1, 2, "h"), ("Phonetic", 2, 5, "u"), ("Text", 0, 5, "two")]
    raw = pd.DataFrame(rows, columns=["tier", "start_s", "end_s", "label"]).assign(file_name="a.wav")
    found = told(raw.to_csv(sep="\t", index=False), "phones.tsv")
    assert found.phone.tolist() == ["t", "h", "u"] and list(found) == ["path", "start", "end", "phone"]
    found = told(raw[raw.tier != "Phonetic"].to_csv(sep="\t", index=False), "phones.tsv")
    assert found.phone.tolist() == ["T", "U"]


def test_what_else_a_corpus_says_is_kept(told):
    found = told("ipa,file_name,start_ms,phone,end_ms,word_index\ni,a.wav,30,I,60,0\ns,a.wav,10,S,30,NA\n")
    assert list(found) == ["path", "start", "end", "phone", "ipa", "word_index"]
    assert found.ipa.tolist() == ["s", "i"] and found.word_index.tolist() == ["NA", "0"]


def test_marks_of_phonetic_alphabets_are_names(told):
    """X-SAMPA writes stress as a quotation mark, and NaN is an N between two vowels."""
    names = ['"', '"a', "{", "@", "NA", "nan"]
    rows = [f"a.wav\t{i}\t{i + 1}\t{name}" for i, name in enumerate(names)]
    found = told("\n".join(["file_name\tstart_s\tend_s\tphone", *rows]), "phones.tsv")
    assert found.phone.tolist() == names


def test_a_corpus_that_tells_none_has_none(tmp_path):
    found = frame_alignment.read(tmp_path)
    assert found.empty and list(found) == ["path", "start", "end", "phone"]


def test_times_may_overlap_by_what_rounding_does(told):
    assert len(told("file_name,start_ms,end_ms,phone\na.wav,0,100.4,s\na.wav,99.5,200,i\n")) == 2


def test_clips_may_overlap(told):
    assert len(told("file_name,start_ms,end_ms,phone\na.wav,0,500,s\nb.wav,20,300,i\n")) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PLAIN.replace("file_name", "file"), "no column 'file_name'; it has file, start_ms, end_ms, phone"),
        (PLAIN.replace("phone", "sound"), "no column 'phone'"),
        (PLAIN.replace("start_ms", "begin"), "no column 'start_ms' or 'start_s'"),
        (PLAIN.replace("end_ms", "stop"), "no column 'end_ms' or 'end_s'"),
        (PLAIN.replace("180.5", "soon"), "end_ms: 'soon' is not a number"),
        (PLAIN.replace("120", ""), "start_ms: '' is not a number"),
        (PLAIN.replace("420", "inf"), "end_ms: 'inf' is not a number"),
        (PLAIN.replace("_ms", "_s").replace("100", "x"), "start_s: 'x' is not a number"),
        (PLAIN.replace("180.5", "99"), r"b\.wav: a phone ends before it begins, at 0\.100 s"),
        (PLAIN.replace("120,300", "120,310"), r"a\.wav: two phones at once, at 0\.300 s"),
        ("", "the table is empty"),
        (PLAIN + "a.wav,500,600,k,h,o\n", "line 5: 6 fields, the header has 4"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(told, tmp_path, text, why):
    with pytest.raises(frame_alignment.BadPhones, match=why) as said:
        told(text)
    assert str(said.value).startswith(f"{tmp_path / 'phones.csv'}: ") and "\n" not in str(said.value)


def test_hand_made_phones_are_read(shared):
    """The tier of phones in emuR's example; another one, of phonemes, covers the same time."""
    found = frame_alignment.read(shared / "speech" / "emur-ae-aligned")
    assert len(found) == 253 and found.path.nunique() == 7
    assert (found.start.diff()[found.path == found.path.shift()] > 0).all()


# ------------------------------------------------------------------------------------- what sounds when


@st.composite
def clip(draw):
    """Phones one after another, some with nothing between: their edges, in milliseconds, drawn in order."""
    edges = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=16)))
    rows = [(a / 1e3, b / 1e3) for a, b in pairwise(edges) if draw(st.integers(0, 3))]
    return pd.DataFrame(rows, columns=["start", "end"], dtype=float)


@given(clip(), st.lists(st.integers(-4, 140).map(lambda half: half / 2e3), max_size=20))
def test_every_moment_has_the_phone_that_holds_it(told, moments):
    slow = [
        next((row for row, (start, end) in enumerate(told.to_numpy()) if start <= moment < end), -1)
        for moment in moments
    ]
    assert frame_alignment.at(told, np.array(moments)).tolist() == slow


def test_at_an_edge_no_rounding_decides():
    """Phones on a grid of 10 ms, as Kaldi and MFA have them: a frame exactly 10 ms from an edge is kept, always; one at
    an edge belongs to the phone that begins."""
    rng = np.random.default_rng(0)
    edges = np.cumsum(rng.choice([4, 5, 6, 7, 8, 10], 400)) * 10 / 1000
    told = pd.DataFrame({"clip": 0, "start": edges[:-1], "end": edges[1:], "phone": "a"})
    centres = clip_table.moments(np.arange(int(edges[-1] / 0.02)))
    for moment in (centres, centres + 0.01):
        where = frame_alignment.placed(told, np.zeros(len(moment), int), moment)
        kept = frame_alignment.labels(told, where, "phone", 0.01) != ""
        near = np.round(np.minimum(where.since, where.left), 6)
        assert (near == 0.01).sum() > 50 and kept[near == 0.01].all() and not kept[near < 0.01].any()
        assert (near == 0).sum() > 50 and not (np.round(where.left, 6) == 0).any()
        assert ((where.third == 0) == (np.round(3 * where.since, 6) < np.round(where.since + where.left, 6)))[
            where.row >= 0
        ].all()


def test_change_peaks_where_the_sound_changes(loaded):
    """A click and the start of a hiss, both in faint noise: within one frame of 10 ms of their moments."""
    sound = np.random.default_rng(0).normal(0, 1e-4, 32_000).astype(np.float32)
    sound[int(0.73 * 16_000) :][:16] = 0.8
    sound[int(1.30 * 16_000) :] *= 1000
    mel = whisper_model.mel(loaded, [sound])[0].numpy()
    found = frame_alignment.change_around(mel, np.array([0.73, 1.30]))
    assert found.shape == (2, 17)
    assert (np.abs(found.argmax(axis=1) - 8) <= 1).all()
    late = frame_alignment.change_around(mel, np.array([0.77, 1.34]))
    assert (np.abs(late.argmax(axis=1) - 4) <= 1).all()


def test_change_is_its_formula_and_unknown_near_an_end():
    mel = np.random.default_rng(0).normal(size=(5, 40))
    found = frame_alignment.change_around(mel, np.array([0.0, 0.2, 0.39]), reach=3)
    slow = [np.mean([abs(row[t + 1] - row[t - 1]) for row in mel]) for t in range(17, 24)]
    np.testing.assert_allclose(found[1], slow)
    assert np.isnan(found[0]).tolist() == [True] * 4 + [False] * 3
    assert np.isnan(found[2]).tolist() == [False] * 3 + [True] * 4


def test_nothing_is_known_of_moments_outside_the_spectrogram():
    mel = np.random.default_rng(0).normal(size=(5, 40))
    assert np.isnan(frame_alignment.change_around(mel, np.array([-0.5, 0.6, 90.0]), reach=3)).all()


# ---------------------------------------------------------------------------------------- in the recipes


def tell(folder, rows):
    pd.DataFrame(rows, columns=["file_name", "start_ms", "end_ms", "phone"]).to_csv(folder / "phones.csv", index=False)


def test_phones_of_two_corpora_go_to_their_own_clips(small_whisper, corpus, data, run_for):
    """File names are the same in both; one table also tells of a clip that the corpus does not have."""
    one, two = corpus("one", voices=3, clips=1), corpus("two", voices=3, clips=1, seed=1)
    tell(one, [("audio/v01_0.flac", 0, 90, "one"), ("audio/gone.flac", 0, 90, "gone")])
    tell(two, [("audio/v02_0.flac", 50, 90, "b"), ("audio/v01_0.flac", 0, 90, "two"), ("audio/v02_0.flac", 0, 50, "a")])
    run = run_for(small_whisper, [one, two])
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    found = phone_tables.phones_of(run, heard)
    clips = ["one/audio/v01_0", "two/audio/v01_0", "two/audio/v02_0", "two/audio/v02_0"]
    assert heard.id[found["clip"]].tolist() == clips
    assert found.phone.tolist() == ["one", "two", "a", "b"]
    some = phone_tables.phones_of(run, heard[heard.corpus == "two"])
    assert heard.corpus[some["clip"]].tolist() == ["two"] * 3


def test_what_one_corpus_does_not_tell_is_filled_in(small_whisper, corpus, data, run_for):
    """A pause belongs to no word."""
    one, two = corpus("one", voices=1, clips=1), corpus("two", voices=1, clips=1, seed=1)
    tell(one, [("audio/v00_0.flac", 0, 50, "a"), ("audio/v00_0.flac", 50, 90, "b")])
    rows = pd.DataFrame({"start_ms": [0, 50], "end_ms": [50, 90], "phone": ["I", "_"], "ipa": ["ɪ", "_"]})
    rows = rows.assign(file_name="audio/v00_0.flac", manner=["vowel", "pause"], word=["in", ""], word_index=["3", ""])
    rows.to_csv(two / "phones.csv", index=False)
    run = run_for(small_whisper, [one, two])
    found = phone_tables.phones_of(run, pipeline.table(run, cache.make(pipeline.clips(run, 0))))
    assert found.ipa.tolist() == ["a", "b", "ɪ", "_"]
    assert found.manner.tolist() == ["vowel", "stop", "vowel", "pause"]
    assert found.word.tolist() == ["", "", "in", ""] and found.word_index.tolist() == [-1, -1, 3, -1]


def test_labels_of_another_alphabet_come_as_ipa_and_marks_as_nothing(small_whisper, corpus, data, run_for):
    folder = corpus("one", voices=1, clips=1)
    names = ["!t", "tasp", "-sth", "aI"]
    tell(folder, [("audio/v00_0.flac", 30 * n, 30 * n + 30, name) for n, name in enumerate(names)])
    run = run_for(small_whisper, folder)
    found = phone_tables.phones_of(run, pipeline.table(run, cache.make(pipeline.clips(run, 0))))
    assert found.ipa.tolist() == ["t", "t", "", "aɪ"] and found.phone.tolist() == names


def test_corpora_without_phones_give_none(small_whisper, corpus, data, run_for):
    run = run_for(small_whisper, corpus(voices=1, clips=1))
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    assert phone_tables.phones_of(run, heard).empty


@pytest.fixture
def probed(small_whisper, corpus, data, run_for):
    """Six voices whistle three tones, which are their phones: (run, folder)."""
    folder = corpus(voices=6, clips=3)
    rng, rows, time = np.random.default_rng(0), [], np.arange(6400) / 16_000
    for name in pd.read_csv(folder / "metadata.csv").file_name:
        sound = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in (220, 660, 1980)])
        soundfile.write(folder / name, sound + rng.normal(0, 0.02, len(sound)), 16_000)
        rows += [(name, 400 * part, 400 * part + 400, phone) for part, phone in enumerate(("low", "mid", "high"))]
    tell(folder, rows)
    return run_for(small_whisper, folder, sites=("encoder.?.resid",)), folder


def made(run):
    for recipe in (pipeline.clips(run, 0), pipeline.activations(run, 0), pipeline.activations(pipeline.twin(run), 0)):
        cache.make(recipe)
    return cache.make(sanity_checks.phone_probe(run, 0, fitted=400, asked=200))


def test_planted_phones_are_read_off_speakers_that_were_not_fitted(probed):
    run, _ = probed
    step = made(run)
    read = step.table("read.csv")
    assert set(read.speaker) == {"v04", "v05"}, "validation and test"
    assert step.facts["phones"] == 3 and (step.facts["fitted"], step.facts["asked"]) == (400, 200)
    share = read.groupby(["input", "site"]).right.mean()
    assert share["chance", "commonest phone"] < 0.5 < 0.9 < share["log-mel", "this frame"]
    assert set(share.index.get_level_values(0)) == {"log-mel", "trained", "untrained", "chance"}
    assert share["trained"].index.tolist() == ["encoder.0.resid", "encoder.1.resid"]


def test_the_sound_changes_where_planted_phones_begin(probed, loaded):
    run, _ = probed
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    told = phone_tables.phones_of(run, heard)
    inner = told[told.phone != "low"].assign(manner="tone")  # the first one begins with the clip
    found = sanity_checks.change_at_phones(loaded, heard, inner, seed=0)
    assert set(found.index) == {"tone", "chance"} and found.shape == (2, 17)
    assert abs(found.loc["tone"].argmax() - 8) <= 1
    assert found.loc["tone"].max() > 2 * found.loc["chance"].max()


def test_phones_must_be_told_of_two_voices_and_of_another(probed):
    run, _ = probed
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    told = phone_tables.phones_of(run, heard)
    of = {voice: told[heard.speaker[told["clip"]].to_numpy() == voice] for voice in ("v00", "v01", "v04", "v05")}
    assert sanity_checks.speakers_apart(heard, told)
    assert sanity_checks.speakers_apart(heard, pd.concat([of["v00"], of["v01"], of["v05"]]))
    assert not sanity_checks.speakers_apart(heard, pd.concat([of["v00"], of["v01"]])), "nobody to be asked about"
    assert not sanity_checks.speakers_apart(heard, pd.concat([of["v00"], of["v04"], of["v05"]])), (
        "one voice to be fitted on"
    )
    assert not sanity_checks.speakers_apart(heard, told.head(0))


def test_other_phones_are_another_result(probed):
    """A corrected table of times must not be answered from what the old one gave."""
    run, folder = probed
    before = sanity_checks.phone_probe(run, 0).key
    table = (folder / "phones.csv").read_text()
    (folder / "phones.csv").write_text(table.replace("mid", "middle"))
    assert sanity_checks.phone_probe(run, 0).key != before


def test_the_demos_phones_lie_in_its_clips():
    found, clips = frame_alignment.read(profiles.DEMO / "corpus"), clip_table.read(profiles.DEMO / "corpus")
    length = found.path.map(clips.set_index("path").duration)
    assert len(found) > 10_000 and (found.end <= length + 1e-3).all()
    assert {"ipa", "manner", "word", "word_index"} <= set(found)
