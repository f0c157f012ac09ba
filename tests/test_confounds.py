"""What comes of a covariate vanishes when it is held fixed or matched; what does not, stays."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae.stats import effects, intervals, matching, permutation, stratified


def world(seed, speakers=80, features=60, overlap=1.2):
    """Women speak higher. Features 0-19 hear pitch and nothing else, 20-39 gender and nothing else, 40-59 neither."""
    rng = np.random.default_rng(seed)
    gender = rng.permutation(np.resize(["female", "male"], speakers))
    pitch = 100 + 20 * ((gender == "female") * overlap + rng.normal(size=speakers))
    x = rng.normal(size=(speakers, features))
    x[:, :20] += ((pitch - 110) / 20)[:, None]
    x[:, 20:40] += 1.2 * (gender == "female")[:, None]
    return x, gender, pd.DataFrame({"f0_hz": pitch, "duration": rng.normal(3, 1, speakers)})


# ------------------------------------------------------------------------------------------------ regression


def test_what_comes_of_pitch_vanishes_and_what_does_not_stays():
    found = [
        (effects.between(x, gender).d, matching.adjusted(x, gender, told)) for x, gender, told in map(world, range(25))
    ]
    plain, held = np.stack([one for one, _ in found]), np.stack([other.d for _, other in found])
    p = np.stack([other.p for _, other in found])
    assert plain[:, :20].mean() > 0.7 and abs(held[:, :20].mean()) < 0.05
    assert held[:, 20:40].mean() == pytest.approx(1.2, abs=0.06)
    for part in (p[:, :20], p[:, 40:]):
        assert (part < 0.05).mean() == pytest.approx(0.05, abs=0.025)
    assert (p[:, 20:40] < 0.05).mean() > 0.95


def test_the_interval_of_a_partial_d_holds_the_truth():
    inside = []
    for seed in range(25):
        x, gender, told = world(seed)
        found = matching.adjusted(x, gender, told)
        low, high = intervals.noncentral(found.d, (found.t / found.d) ** 2, found.df)
        inside += [(low <= 1.2)[20:40] & (high >= 1.2)[20:40], (low <= 0)[40:] & (high >= 0)[40:]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(10, 30), st.booleans())
def test_partial_d_is_that_of_statsmodels(seed, n, crossed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) * 1e3 + 5e3
    x[rng.random((n, 2)) < 0.1] = np.nan
    side, accent = np.resize(["a", "b"], n), rng.integers(0, 2, n).astype(str)
    told = pd.DataFrame({"level": rng.normal(-20, 3, n), "duration": rng.exponential(size=n)})
    found = matching.adjusted(x, side, told, strata=accent if crossed else None)
    for feature, column in enumerate(x.T):
        here = np.isfinite(column)
        design = [(side == "a") * 1.0, *told.to_numpy().T, np.ones(n), *([(accent == "1") * 1.0] if crossed else [])]
        design = np.column_stack(design)[here]
        if np.linalg.matrix_rank(design) < design.shape[1] or len(set(side[here])) < 2:
            continue
        fit = sm.OLS(column[here], design).fit()
        ours = [each[feature] for each in (found.d, found.t, found.p, found.df, found.n)]
        theirs = [fit.params[0] / np.sqrt(fit.scale), fit.tvalues[0], fit.pvalues[0], fit.df_resid, here.sum()]
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_without_covariates_it_is_cohens_d_and_within_strata_that_of_effects():
    x, gender, told = world(0)
    accent = np.resize(["x", "y", "z"], len(x))
    np.testing.assert_allclose(matching.adjusted(x, gender, told[[]]).d, effects.between(x, gender).d, atol=1e-10)
    ours, theirs = matching.adjusted(x, gender, told[[]], strata=accent), stratified.within(x, gender, accent)
    for one, other in zip(ours[1:7], theirs[1:7], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_text_is_held_fixed_by_the_share_of_clips_that_have_it():
    table = pd.DataFrame(
        {"text": ["one", " ONE", "two", "two", "three", "one"], "level": [1.0, 3.0, np.nan, 5.0, 2.0, 2.0]}
    )
    found = matching.of_speakers(table, ["b", "b", "a", "a ", "c", ""])
    assert found.index.tolist() == ["a", "b", "c"]
    assert found.columns.tolist() == ["text = three", "text = two", "level"]
    assert found.to_numpy().tolist() == [[0, 1, 5], [0, 0, 2], [1, 0, 2]]


def test_a_feature_that_hears_the_text_is_no_feature_of_gender():
    """Women mostly read one sentence and men the other; a feature hears the sentence."""
    rng = np.random.default_rng(0)
    speaker, gender = np.repeat(np.arange(60), 5).astype(str), np.repeat(np.resize(["f", "m"], 60), 5)
    text = np.where(rng.random(300) < np.where(gender == "f", 0.75, 0.25), "kettle", "garden")
    values = rng.normal(size=(300, 40)) + 3 * (text == "kettle")[:, None]
    cast = effects.voices(values, speaker, pd.DataFrame({"gender": gender}))
    told = matching.of_speakers(pd.DataFrame({"text": text}), speaker)
    assert effects.between(cast.means, cast.labels.gender).d.min() > 0.8
    found = matching.adjusted(cast.means, cast.labels.gender, told)
    assert abs(found.d.mean()) < 0.15 and found.left[0] < 0.8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told, gender: told.assign(f0_hz=(gender == "female") * 1.0), "f0_hz, duration tell female from male"),
        (lambda told, gender: told[:-1], "covariates: 79 rows for 80 speakers"),
        (
            lambda told, gender: told.assign(f0_hz=np.where(gender == "male", np.nan, 1)),
            "0 speakers of 'male' have them all",
        ),
        (lambda told, gender: pd.DataFrame(np.random.default_rng(0).normal(size=(80, 90))), "too many for 80 speakers"),
    ],
)
def test_what_cannot_be_held_fixed_is_refused(change, said):
    x, gender, told = world(0)
    with pytest.raises(ValueError, match="covariates: ") as refused:
        matching.adjusted(x, gender, change(told, gender))
    assert said in str(refused.value)


def test_speakers_without_a_covariate_and_constant_ones():
    x, gender, told = world(0)
    told = told.assign(room=1.0)
    told.loc[3, "f0_hz"] = np.nan
    found = matching.adjusted(x, gender, told)
    alone = matching.adjusted(np.delete(x, 3, 0), np.delete(gender, 3), told.drop(index=3)[["f0_hz", "duration"]])
    assert (found.n == 79).all()
    np.testing.assert_allclose(found.d, alone.d, atol=1e-9)
    x[:, 0] = 0.1
    assert np.isnan(matching.adjusted(x, gender, told).d[0])


# -------------------------------------------------------------------------------------------------- matching


def test_matched_speakers_are_alike_and_the_planted_effect_stays():
    plain, held, true = [], [], []
    for seed in range(12):
        x, gender, told = world(seed, speakers=160)
        found = matching.matched(gender, told[["f0_hz"]])
        assert len(set(found.kept)) == 2 * len(found.pairs) >= 40
        assert (gender[found.pairs] == ["female", "male"]).all()
        scale = np.sqrt(np.mean([told.f0_hz[gender == name].var() for name in ("female", "male")]))
        assert np.abs(np.diff(told.f0_hz.to_numpy()[found.pairs])).max() <= 0.25 * scale * 1.01
        assert found.balance.before[0] > 0.6 and abs(found.balance.after[0]) < 0.2
        d = effects.between(x[found.kept], gender[found.kept]).d
        plain.append(effects.between(x, gender).d[:20].mean())
        held.append(d[:20].mean())
        true.append(d[20:40].mean())
    assert np.mean(plain) > 0.7 and abs(np.mean(held)) < 0.15 and np.mean(true) == pytest.approx(1.2, abs=0.12)


def test_as_many_pairs_as_can_be_with_the_least_differences():
    labels, told = ["a", "a", "a", "b", "b", "b"], pd.DataFrame({"level": [0.0, 1.0, 9.0, 1.1, 0.2, 30.0]})
    found = matching.matched(labels, told, caliper=0.1)
    assert sorted(found.pairs.tolist()) == [[0, 4], [1, 3]]
    with pytest.raises(ValueError, match=r"covariates: 0 pairs of a and b are alike within 0\.001 SD"):
        matching.matched(labels, told, caliper=0.001)


def test_coarsened_strata_take_most_of_it_away():
    x, gender, told = world(0, speakers=240)
    told.loc[0, "f0_hz"] = np.nan
    strata = matching.coarsened(told[["f0_hz"]], bins=8)
    assert strata[0] == "" and len(set(strata[1:])) == 8
    plain, found = effects.between(x, gender), stratified.within(x, gender, strata)
    assert abs(found.d[:20].mean()) < 0.2 * plain.d[:20].mean() and found.d[20:40].mean() == pytest.approx(
        1.2, abs=0.15
    )
    dealt = permutation.relabelled(x, gender, strata=strata, deals=500)
    np.testing.assert_allclose(dealt.d, found.d, atol=1e-9)
    assert dealt.found[20:40].all() and not dealt.beyond[40:].any()
