"""Probes find what is planted, find nothing where nothing is, and are never asked about a speaker they have met."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from whisper_sae import cache
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, sanity_checks, speaker_probes
from whisper_sae.stats import intervals, probes


def voices(seed=0, groups=4, each=4, clips=4, planted=0.0, width=6):
    """Clips of speakers whose group is loud in them, and whose label, balanced in every group, is `planted` loud.

    Gives x (clip, width), label, speaker and group, (clip,) each.
    """
    rng = np.random.default_rng(seed)
    rows = [(group, voice) for group in range(groups) for voice in range(each)]
    label = np.array(["ab"[voice % 2] for _, voice in rows])
    place, direction = 3 * rng.normal(size=(groups, width)), rng.normal(size=width)
    x = place[[group for group, _ in rows]] + 0.5 * rng.normal(size=(len(rows), width))
    x += planted * np.outer(label == "b", direction / np.linalg.norm(direction))
    x = np.repeat(x, clips, axis=0) + 0.3 * rng.normal(size=(len(rows) * clips, width))
    speaker = np.array([f"{group}.{voice}" for group, voice in rows])
    return x, np.repeat(label, clips), np.repeat(speaker, clips), np.repeat([str(group) for group, _ in rows], clips)


# ------------------------------------------------------------------------------------- unheard speakers


def test_a_planted_label_is_found_in_unheard_speakers():
    x, label, speaker, group = voices(planted=6)
    assert probes.unheard(x, label, speaker, group).mean() > 0.95
    assert probes.unheard(x, label, speaker).mean() > 0.9  # their groups are loud
    rng = np.random.default_rng(0)
    names = np.unique(speaker)
    lot = dict(zip(names, rng.permutation([label[speaker == name][0] for name in names]), strict=True))
    assert 0.2 < probes.unheard(x, np.array([lot[name] for name in speaker]), speaker).mean() < 0.8


def test_a_null_label_is_at_chance_only_where_likes_are_dealt_evenly():
    """Over 12 corpora in which a label means nothing and is balanced in every group; a mean has an SD of 0.02.

    A probe that left out speakers without regard to their group would be wrong three times of four: of a speaker's
    likes, most of those that it met have the other label.
    """
    evenly, anyhow = [], []
    for seed in range(12):
        x, label, speaker, group = voices(seed, groups=8, clips=1)
        evenly.append(probes.unheard(x, label, speaker, group, seed=seed).mean())
        anyhow.append(probes.unheard(x, label, speaker, seed=seed, strengths=probes.STRENGTHS[-1:]).mean())
    assert 0.44 < np.mean(evenly) < 0.56
    assert np.mean(anyhow) < 0.35


@pytest.fixture
def watched(monkeypatch):
    """Probes as ever, whose first input is the number of a speaker: every (fitted, asked) pair of sets of numbers."""
    fit, seen = probes.fit, []

    class Watched:
        def __init__(self, x, y, strength=1.0, weight=None):
            self.probe, self.met = fit(x, y, strength, weight), set(x[:, 0])

        def predict(self, x):
            seen.append((self.met, x[:, 0].tolist()))
            return self.probe.predict(x)

        def score(self, x, y):
            return np.mean(self.predict(x) == y)

    monkeypatch.setattr(probes, "fit", Watched)
    return seen


@pytest.mark.parametrize("likes", [True, False])
def test_no_speaker_is_on_both_sides(watched, likes):
    x, label, speaker, group = voices()
    x[:, 0] = pd.factorize(speaker)[0]
    probes.unheard(x, label, speaker, group if likes else None, repeats=2)
    assert all(met.isdisjoint(asked) for met, asked in watched)
    tried = len(probes.STRENGTHS) + 1  # the strengths, each asked about one fold, and the chosen one about another
    assert len(watched) == 2 * probes.FOLDS * tried
    asked = pd.Series([number for _, some in watched[tried - 1 :: tried] for number in some])
    assert asked.value_counts().tolist() == [2 * 4] * 16, "every clip in every dealing"
    for start in range(0, len(watched), tried):
        inner, outer = watched[start : start + tried - 1], watched[start + tried - 1]
        assert all(set(some).isdisjoint(outer[1]) and met < outer[0] for met, some in inner)


def test_tuning_is_about_unheard_speakers_too(watched):
    x, label, speaker, _ = voices()
    x[:, 0] = pd.factorize(speaker)[0]
    probe = probes.tuned(x, label, speaker, most=50)
    assert len(watched) == len(probes.STRENGTHS) and all(met.isdisjoint(asked) for met, asked in watched)
    assert {len(met) + len(set(asked)) for met, asked in watched} == {16}
    assert probe.met == set(range(16)), "the last one is fitted on everyone"


def test_speakers_of_a_cell_are_spread_over_the_folds_and_weigh_as_much_as_their_likes():
    _, label, speaker, group = voices(each=8)
    rows = probes.rows_of(label, speaker, group)
    fold = probes.folds_of(rows, 5, np.random.default_rng(0))
    cells = rows.assign(fold=fold).drop_duplicates("speaker").groupby(["alike", "label"]).fold.value_counts()
    assert set(cells) <= {1, 2} and (pd.Series(fold).groupby(speaker).nunique() == 1).all()
    some = rows[fold != 0]
    weight = pd.Series(probes.even(some), some.index).groupby([some["alike"], some.label]).sum().unstack()
    np.testing.assert_allclose(weight.iloc[:, 0], weight.iloc[:, 1])
    assert weight.to_numpy().sum() == pytest.approx(len(some))


def test_what_a_corpus_tells_is_not_read_as_the_label():
    """16 : 4 in one corpus and 4 : 16 in the other, inputs of the corpus alone: balanced within corpora, chance."""
    scores = []
    for seed in range(6):
        rng, corpus = np.random.default_rng(seed), np.repeat(["a", "b"], 20)
        label = np.r_[["f"] * 16, ["m"] * 4, ["f"] * 4, ["m"] * 16]
        x = ((corpus == "a")[:, None] * 3.0 + rng.normal(size=(40, 5))).repeat(2, axis=0)
        label, corpus, who = label.repeat(2), corpus.repeat(2), np.arange(40).repeat(2).astype(str)
        right = probes.unheard(x, label, who, corpus, repeats=1, seed=seed)
        scores.append(speaker_probes.balanced(sanity_checks.by_speaker(right, label, who, corpus))[0])
    assert probes.unheard(x, label, who, repeats=1).mean() > 0.75  # without, it is right in 80 %
    assert 0.4 < np.mean(scores) < 0.6


def test_dealings_follow_the_seed():
    x, label, speaker, group = voices(planted=1)
    first = probes.unheard(x, label, speaker, group, repeats=1, seed=1)
    np.testing.assert_array_equal(first, probes.unheard(x, label, speaker, group, repeats=1, seed=1))
    assert (first != probes.unheard(x, label, speaker, group, repeats=1, seed=2)).any()
    assert set(first) <= {0, 1}


def test_rows_of_a_longer_table_keep_their_places():
    x, label, speaker, group = voices(planted=2)
    some = pd.DataFrame({"label": label, "speaker": speaker, "group": group}, index=10 + 3 * np.arange(len(x)))
    found = probes.unheard(x, some.label, some.speaker, some.group)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, probes.unheard(x, label, speaker, group))


def test_a_label_of_a_single_speaker_cannot_be_asked_about():
    x, label, speaker, group = voices()
    alone = np.where(speaker == "0.0", "c", label)
    with pytest.raises(ValueError, match=r"labels: .*'c'.* has a single speaker"):
        probes.unheard(x, alone, speaker)
    with pytest.raises(ValueError, match=r"labels: \('[0z]', 'a'\) has a single speaker"):
        probes.unheard(x, label, speaker, np.where(speaker == "0.0", "z", group))


# ------------------------------------------------------------------------------------------------ tuning


def test_tuning_needs_two_speakers():
    x, label, _, _ = voices()
    with pytest.raises(ValueError, match="speakers: at least two are needed"):
        probes.tuned(x, label, np.full(len(x), "ada"))


def test_noise_is_held_down_and_a_clear_voice_is_let_through():
    """Sixty useless inputs beside a weak one: the weakest probe. One clear input on a fine line: the strongest."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(12), 10)
    label = rng.integers(0, 2, 120)
    noisy = np.c_[label + rng.normal(0, 0.5, 120), rng.normal(size=(120, 60))]
    chosen = probes.tuned(noisy, label, speaker)[-1].C
    assert chosen == min(probes.STRENGTHS)
    fine = rng.uniform(-1, 1, 120)
    kinds = np.digitize(fine, np.linspace(-1, 1, 7)[1:-1])
    chosen = probes.tuned(np.c_[fine, fine**2], kinds, speaker)[-1].C
    assert chosen == max(probes.STRENGTHS)


def test_units_of_the_inputs_do_not_matter():
    x, label, speaker, group = voices(planted=1)
    units = 10.0 ** np.arange(-3, 3)
    found = probes.unheard(x * units + 5, label, speaker, group)
    np.testing.assert_allclose(found, probes.unheard(x, label, speaker, group))


# ---------------------------------------------------------------------------------- shares and intervals


def test_a_speakers_share_is_of_its_own_rows():
    shares = probes.by_speaker(np.array([1, 0, 0.5, 1, 1]), np.array(["b", "a", "a", "b", "c"]))
    assert shares.to_dict() == {"a": 0.25, "b": 1, "c": 1}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_students(shares, level):
    mean, low, high = probes.interval(pd.Series(shares), level)
    assert mean == pytest.approx(np.mean(shares))
    error = stats.sem(shares)
    theirs = stats.t.interval(level, len(shares) - 1, np.mean(shares), error) if error else (mean, mean)
    theirs = theirs if len(shares) >= intervals.LEAST else (np.nan, np.nan)
    assert (low, high) == pytest.approx(theirs, abs=1e-9, nan_ok=True)


def test_the_interval_covers():
    """Simulated: 12 speakers, each right in a share of its own; 95 % intervals hold the truth 93-97 % of the time."""
    rng, hits, runs = np.random.default_rng(0), 0, 1000
    for shares in rng.beta(12, 5, (runs, 12)):
        _, low, high = probes.interval(pd.Series(shares))
        hits += low <= 12 / 17 <= high
    assert 0.93 < hits / runs < 0.97


def test_one_speaker_has_no_interval():
    mean, low, high = probes.interval(pd.Series([0.5]))
    assert mean == 0.5 and np.isnan([low, high]).all()


def test_a_summary_keeps_the_order_and_stays_between_0_and_1():
    read = pd.DataFrame(
        [("z", "1", f"s{n}", share) for n, share in enumerate([1.0, 0.1] * 3)]
        + [("a", "1", f"s{n}", 0.5) for n in range(6)]
        + [("b", "1", f"s{n}", 0.5) for n in range(5)],
        columns=["input", "site", "speaker", "right"],
    )
    found = probes.summary(read, ["input", "site"])
    assert list(found) == ["input", "site", "right", "right_low", "right_high", "speakers"]
    assert found.input.tolist() == ["z", "a", "b"] and found.speakers.tolist() == [6, 6, 5]
    assert found.right.tolist() == pytest.approx([0.55, 0.5, 0.5])
    assert 0 <= found.right_low[0] < 0.1 and found.right_high[0] == 1
    assert found.right_low[1] == found.right_high[1] == 0.5
    assert np.isnan([found.right_low[2], found.right_high[2]]).all(), "of five speakers none"


# --------------------------------------------------------------------------------------------- neighbours


def test_neighbours_at_the_edge_of_a_clip_are_its_edge():
    x, clip = np.array([[1], [2], [3], [7], [8]]), np.array([4, 4, 4, 9, 9])
    assert probes.with_context(x, clip, 1).tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3], [7, 7, 8], [7, 8, 8]]
    assert probes.with_context(x, clip, 0).tolist() == x.tolist()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 6))
def test_neighbours_are_those_of_each_clip_alone(lengths, reach):
    clip = np.repeat(np.arange(len(lengths)), lengths)
    x = np.stack([np.arange(len(clip)), -np.arange(len(clip))], axis=1)
    parts = [np.pad(x[clip == one], ((reach, reach), (0, 0)), mode="edge") for one in range(len(lengths))]
    slow = [part[row : row + 2 * reach + 1].ravel() for part in parts for row in range(len(part) - 2 * reach)]
    np.testing.assert_array_equal(probes.with_context(x, clip, reach), slow)


# ---------------------------------------------------------------------------------------- in the recipes


def cast(*rows):
    """Clips, two of each speaker: (speaker, gender, accent)."""
    return pd.DataFrame([row for row in rows for _ in range(2)], columns=["speaker", "gender", "accent"])


BALANCED = [(f"{gender}{accent}{n}", gender, accent) for gender in "fm" for accent in "xy" for n in range(2)]


LIKES = {"gender": ["accent"], "accent": []}


@pytest.mark.parametrize(
    ("rows", "found", "refused"),
    [
        (BALANCED, {"gender": ["accent"], "accent": []}, ()),
        (BALANCED[1:], {"gender": [], "accent": []}, ()),  # one of a kind is alone among its likes
        ([row for row in BALANCED if row[1] == "f"], {"accent": []}, ()),  # a single gender
        ([*BALANCED, ("eve", "f", "z")], {"gender": [], "accent": []}, ()),  # a single speaker of an accent: left out
        ([*BALANCED, ("eve", "", "x")], {"gender": ["accent"], "accent": []}, ()),  # not told: not asked about
        ([*BALANCED, ("", "f", "z")], {"gender": ["accent"], "accent": []}, ()),  # nobody's clips
    ],
)
def test_only_labels_that_can_be_asked_about_are(rows, found, refused):
    asked, why = sanity_checks.askable(cast(*rows), LIKES)
    assert asked == found and tuple(why) == refused


def test_four_labels_are_asked_and_the_others_named():
    heard = cast(*BALANCED)
    more = {name: heard.gender.to_numpy() for name in "pqr"}
    asked, why = sanity_checks.askable(heard.assign(**more))
    assert list(asked) == ["gender", "accent", "p", "q"] and list(why) == ["r"]


def test_with_several_corpora_likes_are_those_of_a_corpus():
    heard = cast(*BALANCED)
    halves = heard.assign(corpus=np.where(heard.speaker.str[-1] == "0", "one", "two"))
    asked, why = sanity_checks.askable(halves, LIKES)  # one speaker a cell of gender and accent, two of gender alone
    assert asked == {"gender": ["corpus"], "accent": ["corpus"]} and not why
    by_accent = heard.assign(corpus=heard.accent)
    assert sanity_checks.askable(by_accent, LIKES)[0] == {"gender": ["corpus"]}  # the accent is the corpus
    here, label, who, alike, within = sanity_checks.labelled(by_accent, "gender", ["corpus"])
    assert here.all() and set(label) == {"f", "m"} and set(alike) == {"x", "y"} == set(within) and len(set(who)) == 8


def test_what_is_askable_can_be_asked():
    rng, likes = np.random.default_rng(0), {"gender": ["accent"], "accent": ["gender"]}
    for size in range(4, 30, 5):
        rows = [(f"v{n}", rng.choice(["f", "m"]), rng.choice(["x", "y", "z"])) for n in range(size)]
        heard = cast(*rows)
        heard["corpus"] = np.repeat(rng.choice(["one", "two"], size), 2) if size % 2 else "one"
        for label, others in sanity_checks.askable(heard, likes)[0].items():
            here, *asked, _ = sanity_checks.labelled(heard, label, others)
            probes.unheard(rng.normal(size=(here.sum(), 2)), *asked, repeats=1)


@pytest.fixture
def made(small_whisper, corpus, data, run_for):
    """Nine voices, some clips longer than a window and one silent: (run, table of clips, clips, activations)."""
    folder = corpus(voices=9, clips=3, splits=False)
    soundfile.write(folder / "audio" / "v00_1.flac", np.zeros(8000), 16_000)
    run = run_for(small_whisper, folder)
    clips, acts = cache.make(pipeline.clips(run, 0)), cache.make(pipeline.activations(run, 0))
    return run, pipeline.table(run, clips), clips, acts


def test_means_of_clips_are_over_their_frames_of_speech(made):
    run, heard, clips, acts = made
    found = pipeline.clip_means(run, clips, acts, "encoder.0.resid")
    held, windows = store.Activations(acts.path), acts.table("windows.csv")
    assert windows["clip"].duplicated().any(), "some clips are longer than a window"
    rows = held.rows("encoder.0.resid").take(np.arange(acts.facts["frames"])).double().numpy()
    clip, speaking = held.rows("encoder.0.resid").per_window(windows["clip"]), held.valid_kinds() == clip_table.SPEECH
    assert found.shape == (27, 32)
    assert np.isnan(found).any(axis=1).tolist() == [id == "audio/v00_1" for id in heard.id]
    for number in np.flatnonzero(np.isfinite(found[:, 0])):
        np.testing.assert_allclose(found[number], rows[speaking & (clip == number)].mean(axis=0), rtol=1e-6, atol=1e-9)


def test_a_planted_voice_is_read_off_clips_of_unheard_speakers(made):
    """Women hum at 200 Hz and men at 110."""
    step = cache.make(sanity_checks.label_probe(made[0], 0, {"gender": []}))
    read = step.table("read.csv")
    assert list(read) == ["label", "site", "speaker", "told", "stratum", "right"]
    assert set(read.site) == {"log-mel", "encoder.0.resid", "encoder.1.resid"}
    assert set(read.groupby("site").speaker.nunique()) == {9}
    assert read[read.site == "log-mel"].right.mean() > 0.9
