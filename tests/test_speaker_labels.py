"""Which labels of speakers are asked about: nothing is left out without its name and the reason."""

import itertools

import numpy as np
import pandas as pd
import pytest

from whisper_sae.data import corpora, speaker_labels
from whisper_sae.experiments import speaker_effects, speakers
from whisper_sae.stats import effects, intervals, permutation


def clips(speakers=20, each=4, **labels) -> pd.DataFrame:
    """Clips of speakers s00, s01, …; a label is a value a speaker."""
    rows = np.repeat(np.arange(speakers), each)
    table = pd.DataFrame({"id": [f"c{n}" for n in range(len(rows))], "speaker": [f"s{n:02d}" for n in rows]})
    return table.assign(path="", text="x", split="train", duration="3",
                        **{name: np.resize(values, speakers)[rows] for name, values in labels.items()})  # fmt: skip


GENDER = ["female", "male"] * 10


def notes(found) -> dict:
    return found.report.set_index("label").note.to_dict()


def test_one_clip_with_another_gender_leaves_out_its_speaker_alone():
    table = clips(gender=GENDER, accent=["us"] * 10 + ["uk"] * 10)
    table.loc[0, "gender"] = "male"
    found = speaker_labels.choose(table)
    assert list(found.values) == ["gender", "accent"]
    assert set(table.speaker[found.values.gender == ""]) == {"s00"}
    assert notes(found)["gender"] == "left out, since they have two values: s00 (female and male)"
    assert found.report.speakers.tolist()[:2] == [19, 20]


def test_of_many_groups_the_largest_are_kept_and_the_others_named():
    accents = [f"a{n:02d}" for n in range(12) for _ in range(3)] + ["rare", "rarer"]
    found = speaker_labels.choose(clips(38, gender=GENDER + GENDER[:18], accent=accents))
    assert list(found.values) == ["gender", "accent"]
    assert sorted(set(found.values.accent)) == ["", *sorted(set(accents) - {"rare", "rarer"})]
    assert "the 12 groups with most speakers; left out: rare (1), rarer (1)" in notes(found)["accent"]


def test_why_a_column_is_not_asked_is_said():
    table = clips(gender="female", accent="", age=range(20), mood="glad", room=[*"ab"] + ["c"] * 18)
    table["mood"] = ["glad", "sad"] * 40
    found = speaker_labels.choose(table)
    assert found.values.empty and set(found.report.asked) == {"no"}
    said = notes(found)
    assert said["gender"] == "a single group: female" and said["accent"] == "no clip of a named speaker has a value"
    assert said["mood"] == "20 of 20 speakers have several values: a label of clips"
    assert said["room"] == "no two groups have two speakers" and said["age"].startswith("numbers")


def test_labels_that_differ_in_case_or_spaces_are_one():
    found = speaker_labels.choose(clips(6, gender=["Female", "female ", "FEMALE", "male", "Male", "unknown"]))
    assert sorted(set(found.values.gender)) == ["", "female", "male"]


def test_a_corpus_with_one_group_is_left_out_and_a_label_that_is_the_corpus_is_refused():
    table = clips(gender=GENDER, accent=["us"] * 10 + ["uk"] * 10, corpus=["a"] * 10 + ["b"] * 10)
    table.loc[table.speaker >= "s10", "gender"] = "male"
    found = speaker_labels.choose(table)
    assert list(found.values) == ["gender"] and set(found.corpus[found.values.gender == ""]) == {"b"}
    assert notes(found)["gender"] == "a single group, so nothing to compare, in b"
    assert "cannot be told from the corpus" in notes(found)["accent"]


def test_a_table_without_speakers_has_no_labels_and_says_so():
    found = speaker_labels.choose(pd.DataFrame({"speaker": ["", ""], "folder": ["a", "b"], "gender": "", "accent": ""}))
    assert found.values.empty and found.report.label.tolist() == ["gender", "accent", "folder"]
    assert found.corpus is None and set(found.report.note) == {"no clip of a named speaker has a value"}


def test_groups_too_small_for_a_probe_are_left_out():
    who = np.array([f"s{n}" for n in range(9)])
    kept, why = speaker_labels.for_probe(np.array([*"aaabbbccd"]), who)
    assert not why and "".join(kept) == "aaabbbcc"
    corpus = np.array([*"xxxxxyyyy"])
    kept, why = speaker_labels.for_probe(np.array([*"aabbbabbb"]), who, corpus)
    assert not why and "".join(kept) == "aabbb"  # y has one speaker of a
    assert "one corpus" in speaker_labels.for_probe(np.array([*"aaaabbbbb"]), who, np.array([*"xxxxyyyyy"]))[1]


# --------------------------------------------------------------------------------- several corpora, held fixed


def two_corpora(planted=0.0, seed=0):
    """40 speakers, 16 : 4 women in one corpus and 4 : 16 in the other; 30 features of the corpus alone, the first also
    `planted` SDs higher in women; accent is the corpus."""
    rng = np.random.default_rng(seed)
    corpus = np.repeat(["A", "B"], 20)
    gender = np.r_[["female"] * 16, ["male"] * 4, ["female"] * 4, ["male"] * 16]
    heard = clips(40, 1, gender=gender, accent=np.where(corpus == "A", "us", "uk"), corpus=corpus)
    x = (corpus == "A")[:, None] * 2.0 + rng.standard_normal((40, 30))
    x[:, 0] += planted * (gender == "female")
    return effects.voices(x, heard.speaker, heard[speakers.labels_of(heard)]), heard


def test_what_a_corpus_alone_tells_is_not_found_for_gender():
    cast, _ = two_corpora()
    assert list(cast.labels) == ["gender"] and set(cast.corpus) == {"a", "b"}
    found = speaker_effects.two(cast, "gender", deals=4_000)
    assert found.chance.found.sum() == 0 and not found.chance.beyond.any()
    assert (found.table.auc - 0.5).abs().max() < 0.35 and found.table[["n_one", "n_other"]].eq(20).all(axis=None)
    assert speaker_effects.two(cast._replace(corpus=None), "gender", deals=2_000).chance.found.sum() > 20  # the fault
    assert speaker_effects.two(cast, "gender", "corpus", deals=500).chance.found.sum() == 0
    assert speaker_effects.many(cast, "gender", deals=500).chance.found.sum() == 0
    held = speaker_effects.held(cast, ["gender"], pd.DataFrame({"level": np.arange(40) % 7.0}), deals=500)
    assert held.found.fillna(0).eq(0).all() and held.why.eq("").all()


def test_what_gender_tells_is_found_within_corpora():
    cast, _ = two_corpora(planted=4.0)
    found = speaker_effects.two(cast, "gender", deals=2_000)
    assert found.table.feature[0] == 0 and found.chance.beyond.sum() == 1
    assert found.table.low[0] < found.table.d[0] < found.table.high[0] and found.table.auc[0] > 0.95
    assert abs(found.table.g[0]) < abs(found.table.d[0])


def test_pairs_that_share_no_corpus_are_not_compared():
    cast, _ = two_corpora()
    cast.labels["accent"] = np.where(cast.corpus == "a", ["us", "uk"] * 20, ["uk", "in"] * 20)
    table = speaker_effects.pairs(cast, "accent", 0, deals=500).set_index(["one", "other"])
    assert "none has both" in table.why["in", "us"] or "0 speakers" in table.why["in", "us"]
    assert table.why["uk", "us"] == "" and table.n_one["uk", "us"] == 10
    names, d = speaker_effects.matrix(table.reset_index())
    assert names == ("in", "uk", "us") and np.isnan(d[0, 2]) and np.isfinite(d[1, 2])


def test_found_is_over_all_pairs_together():
    """Of 15 pairs in which nothing differs one in twenty has something at 5 % within it; over all, one study in 20."""
    hits = within = 0
    for seed in range(20):
        x, told = np.random.default_rng(seed).normal(size=(42, 8)), np.repeat([*"abcdef"], 7)
        pairs = itertools.combinations("abcdef", 2)
        chances = [permutation.relabelled(x, told, pair, seed=seed, deals=300) for pair in pairs]
        counts = np.array(speaker_effects._over_all(chances))
        hits += counts[:, 1].any()
        within += any(chance.beyond.any() for chance in chances)
    assert hits <= 4 < within


def test_few_speakers_have_no_interval_within_corpora():
    cast, _ = two_corpora()
    few = cast._replace(labels=cast.labels.assign(gender=np.where(cast.corpus == "a", cast.labels.gender, "")))
    assert not speakers.answerable(few, "gender")  # four men
    with pytest.raises(ValueError, match="4 speakers are 'male'"):
        intervals.enough(("female", "male"), [16, 4])


def test_a_release_of_common_voice_is_asked_what_it_can_answer(tmp_path):
    """14 accents in lists and several spellings, a speaker of two genders; another release without any accent."""
    accents = [f"Accent {n // 3}" for n in range(36)] + ["Rare English,Loud", "Rarer (here, there)"]
    lines = ["client_id\tpath\tsentence\tgender\taccents\tup_votes"]
    for n, accent in enumerate(accents):
        listed = [accent, f"{accent.upper()},Slow"]
        for clip in range(2):
            gender = ("female_feminine", "male_masculine")[(n + (clip if n == 5 else 0)) % 2]
            lines.append(f"{n:03d}{'f' * 125}\t{n}_{clip}.mp3\ta sentence\t{gender}\t{listed[clip]}\t2")
    (tmp_path / "clips").mkdir()
    (tmp_path / "validated.tsv").write_text("\n".join(lines))
    found = speaker_labels.choose(corpora.rows(tmp_path))
    report = found.report.set_index("label")
    assert list(found.values) == ["gender", "accent"] and report.groups["accent"] == 12
    assert report.note["accent"].endswith("left out: rare english (1), rarer (here, there) (1)")
    assert report.note["gender"] == "left out, since they have two values: 005fffffffff… (female and male)"
    assert report.speakers["gender"] == 37 and report.speakers["accent"] == 36
    empty = [line if n == 0 else line.rsplit("\t", 2)[0] + "\t\t2" for n, line in enumerate(lines)]
    (tmp_path / "validated.tsv").write_text("\n".join(empty) + "\n")
    report = speaker_labels.choose(corpora.rows(tmp_path)).report.set_index("label")
    assert report.asked["accent"] == "no" and report.note["accent"] == "no clip of a named speaker has a value"
