"""A feature that one measure of the sound explains is flagged, one that is tied to a phone is not, nor is chance."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from whisper_sae.features import acoustics, correlates, sparse_acts
from whisper_sae.stats import null_distribution

PLANTED = {"energy": 0, "pitch": 1, "centroid": 2, "start of speech": 3, "end of speech": 4, "padding edge": 5}
PHONE, NEVER, ALWAYS, SPEAKER = 6, 7, 8, 9


def spoken(rng, pitch):
    """A clip of 4 to 6 s: stretches of speech of eight 'phones', each with a loudness and a colour, and pauses between.

    And the phone of each frame, -1 in a pause.
    """
    sound, phones, t = [], [], 0
    while t < rng.integers(200, 300):
        for _ in range(rng.integers(5, 12)):
            phone, frames = rng.integers(8), rng.integers(3, 9)
            time = np.arange(frames * 320) / 16_000
            hertz = pitch * 2 ** rng.normal(0, 0.3)
            noise = rng.normal(size=len(time)) * rng.uniform(0.02, 0.3)
            tone = sum(np.sin(2 * np.pi * hertz * n * time) / n ** (1 + phone % 2) for n in range(1, 9))
            sound.append(10 ** (rng.normal(-6 + 0.8 * phone, 5) / 20) * 0.1 * (tone + noise))
            phones += [phone] * frames
        pause = rng.integers(10, 30)
        sound.append(rng.normal(size=pause * 320) * 1e-4)
        phones += [-1] * pause
        t = len(phones)
    return np.concatenate(sound), np.array(phones)


@pytest.fixture(scope="module")
def world():
    """Measures of synthetic sound, phones, speakers, clips; and codes, (frame, feature), of which PLANTED are tied."""
    rng, tables, phones, speakers, clips = np.random.default_rng(0), [], [], [], []
    for number in range(24):
        sound, phone = spoken(rng, (110, 200)[number // 3 % 2])
        tables.append(acoustics.measured(sound, 400).iloc[: len(phone)])
        phones.append(phone)
        speakers += [number // 3] * len(phone)
        clips += [number] * len(phone)
    told, phones = pd.concat(tables, ignore_index=True), np.concatenate(phones)
    many, speakers = len(phones), np.array(speakers)
    dense = rng.random((many, 40)) * (gaussian_filter1d(rng.normal(size=(many, 40)), 2, axis=0) > 0.45)
    dense[:, 0] = np.maximum(told.energy - told.energy.quantile(0.9) + rng.normal(0, 1, many), 0)
    near = np.exp(-(np.log2(told.pitch.to_numpy() / 150) ** 2) / 0.02)  # a band of pitches
    dense[:, 1] = np.nan_to_num(near) * (rng.random(many) < 0.9)
    dense[:, 2] = np.maximum(told.centroid - 600 + rng.normal(0, 100, many), 0)
    for name in ("start of speech", "end of speech", "padding edge"):
        dense[:, PLANTED[name]] = (told[name] == 1) * (rng.random(many) < 0.8) * rng.uniform(1, 2, many)
    dense[:, PHONE] = (phones == 5) * rng.uniform(0.5, 1.5, many)
    dense[:, NEVER], dense[:, ALWAYS] = 0, 1
    dense[:, SPEAKER] = (speakers % 2) * rng.uniform(0.8, 1.2, many)  # loud for deep voices, and no more
    return sparse_acts.of_chunks([dense]), told, speakers, np.array(clips), phones


@pytest.fixture(scope="module")
def found(world):
    return correlates.correlates(*world[:4], draws=100)


# ------------------------------------------------------------------------------------------ what is planted


@pytest.mark.parametrize("measure", PLANTED)
def test_what_is_planted_wears_its_flag(found, measure):
    told = found.table().loc[PLANTED[measure]]
    right = ("centroid", "crossings") if measure == "centroid" else (measure,)  # two measures of one brightness
    assert told.measure in right and told.flag == correlates.FLAGS.get(told.measure, told.measure)
    assert told.explained > 0.4 and told.q <= 0.05 and told.low < told.correlation < told.high
    if measure in acoustics.EVENTS:
        assert told.auc > 0.85


def test_the_flag_of_energy_is_loudness(found):
    assert found.table().flag[0] == "loudness" and found.table().correlation[0] > 0.4
    assert found.worn().set_index("measure").loc["energy", ["flag", "best"]].tolist() == ["loudness", 1]


def test_a_feature_tied_to_a_phone_wears_none(found, world):
    """Though the phone is one of the louder ones, which its correlation with energy shows, and far beyond chance."""
    energy = found.names.tolist().index("energy")
    assert found.table().flag[PHONE] == "" == found.table().wears[PHONE]
    assert found.correlation[PHONE, energy] > 0.1 and found.q[PHONE, energy] <= 0.05


def test_a_feature_of_some_speakers_is_not_flagged_pitch(found):
    pitch = found.names.tolist().index("pitch")
    assert found.explained[SPEAKER, pitch] > 0.2 and "pitch" not in found.table().wears[SPEAKER]


def test_noise_wears_no_flag(found):
    assert (found.table().flag.iloc[10:] == "").all() and not found.flagged()[10:].any()


@pytest.mark.parametrize("seed", range(3))
def test_measures_gone_round_in_every_clip_give_no_flags(world, seed):
    made, told, speaker, clip, _ = world
    padded = told.drop(columns=["since silence", "until silence", "pitch"])  # keep all frames
    (order,) = null_distribution.shifts(clip, 1, 100 + seed)
    shifted = correlates.correlates(made, padded.iloc[order], speaker, clip, draws=0, seed=seed)
    assert not shifted.flagged().any()
    assert not shifted.flagged_shifted().any() and not shifted.worn().shifted.any()
    assert shifted.flagged(least=-np.inf).sum() <= 3, "nor is much beyond chance, however little"


# ------------------------------------------------------------------------------------------- what is odd


def test_never_and_always(found):
    for feature in (NEVER, ALWAYS):
        assert np.isnan(found.explained[feature]).all() and np.isnan(found.correlation[feature]).all()
        row = found.table().loc[feature]
        assert (row.flag, row.measure, row.wears) == ("", "", "") and np.isnan(row.explained)
    assert found.fires[NEVER] == 0 and found.fires[ALWAYS] == 1


def small(frames=400, clips=8, features=3, seed=0):
    rng = np.random.default_rng(seed)
    dense = np.maximum(rng.normal(size=(frames, features)), 0)
    told = pd.DataFrame({"energy": dense[:, 0] + 0.1 * rng.normal(size=frames), "pitch": rng.normal(size=frames)})
    return sparse_acts.of_chunks([dense]), told, np.arange(frames) * clips // frames


def test_measures_that_say_nothing():
    made, told, clip = small()
    told = told.assign(pitch=np.nan, constant=3.0, never=0, infinite=np.inf)
    found = correlates.correlates(made, told, clip // 2, clip)
    for part in (found.correlation, found.explained, found.auc, found.q, found.low):
        assert np.isnan(part[:, 1:]).all()
    assert found.table().flag.tolist() == ["loudness", "", ""]
    assert found.frames.tolist() == [400, 0, 400, 400, 0]
    assert found.worn().asked.tolist() == [3, 0, 0, 0, 0]


def test_one_speaker_has_clips_and_one_clip_has_nothing():
    made, told, clip = small()
    one = correlates.correlates(made, told, np.zeros(400), clip)
    assert one.table().flag[0] == "loudness" and np.isfinite(one.low[0]).all()
    alone = correlates.correlates(made, told, np.zeros(400), np.zeros(400))
    assert alone.correlation[0, 0] > 0.7 and np.isnan(alone.explained).all() and np.isnan(alone.low).all()
    assert (alone.table().flag == "").all()


def test_no_feature_fires_and_no_frame_is():
    _, told, clip = small()
    silent = correlates.correlates(sparse_acts.of_chunks([np.zeros((400, 2))]), told, clip, clip)
    assert (silent.table().flag == "").all() and (silent.fires == 0).all()
    none = correlates.correlates(sparse_acts.of_chunks([np.zeros((0, 2))]), told[:0], clip[:0], clip[:0])
    assert np.isnan(none.correlation).all() and len(none.table()) == 2


def test_too_few_firings_are_not_asked():
    made, told, clip = small()
    dense = made.toarray()
    dense[np.flatnonzero(dense[:, 0])[15:], 0] = 0
    found = correlates.correlates(sparse_acts.of_chunks([dense]), told, clip, clip)
    assert np.isnan(found.explained[0]).all() and np.isfinite(found.explained[1]).all()
    assert np.isfinite(found.correlation[0]).all()


def test_what_does_not_fit_is_refused():
    made, told, clip = small()
    with pytest.raises(ValueError, match="measures: 399 for 400 frames of codes"):
        correlates.correlates(made, told[:-1], clip, clip)
    with pytest.raises(ValueError, match="clip: the frames of a clip must follow each other"):
        correlates.correlates(made, told, clip, np.arange(400) % 2)


# ----------------------------------------------------------------------------------- numbers by other means


@given(st.integers(0, 2**32), st.integers(5, 60), st.booleans())
def test_the_correlation_is_that_of_scipy(seed, frames, ties):
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 4, (frames, 3)) * (rng.random((frames, 3)) < 0.7)
    value = rng.integers(0, 5, frames) if ties else rng.normal(size=frames)
    ours = correlates.spearman(sparse_acts.of_chunks([dense]), value)
    for feature in range(3):
        x = dense[:, feature]
        if x.min() == x.max() or value.min() == value.max():
            assert np.isnan(ours[feature])
        else:
            assert ours[feature] == pytest.approx(spearmanr(x, value).statistic)


def test_auc_is_that_of_scikit_learn(found, world):
    made, told = world[:2]
    for name in acoustics.EVENTS:
        column = found.names.tolist().index(name)
        here = told[name].notna().to_numpy()
        for feature in (0, 3, 12):
            right = roc_auc_score(told[name][here], made[:, [feature]].toarray()[here, 0])
            assert found.auc[feature, column] == pytest.approx(right)
    assert np.isnan(found.auc[:, : len(acoustics.MEASURES)]).all()


def test_what_is_explained_is_what_the_other_half_taught(found, world):
    """R² of a feature by an event, with the mean on and off it taught by the other half of the speakers."""
    made, told, speaker, *_ = world
    x, event = made[:, [3]].toarray()[:, 0], told["start of speech"].to_numpy() == 1
    first = sparse_acts.half_of(speaker, 0)
    left = own = 0.0
    for here in (first, ~first):
        says = np.where(event, x[~here & event].mean(), x[~here & ~event].mean())
        left += np.square(x - says)[here].sum()
        own += np.square(x - x[here].mean())[here].sum()
    column = found.names.tolist().index("start of speech")
    assert found.explained[3, column] == pytest.approx(1 - left / own, rel=1e-5)


def test_the_interval_holds_what_other_speakers_say():
    """Of 60 corpora of ten speakers each, about 95 % have the correlation of a very large one in their interval."""
    rng = np.random.default_rng(1)

    def corpus(speakers):
        liking = np.repeat(rng.normal(0.5, 0.3, speakers), 40)
        y = rng.normal(size=speakers * 40)
        x = np.maximum(liking * y + rng.normal(size=len(y)), 0)
        return sparse_acts.of_chunks([x[:, None]]), pd.DataFrame({"y": y}), np.repeat(np.arange(speakers), 40)

    made, told, _ = corpus(4000)
    right = correlates.spearman(made, told.y.to_numpy())[0]
    inside = 0
    for _ in range(60):
        made, told, who = corpus(10)
        found = correlates.correlates(made, told, who, who, shifts=20, draws=200)
        inside += found.low[0, 0] <= right <= found.high[0, 0]
    assert 48 <= inside <= 60
