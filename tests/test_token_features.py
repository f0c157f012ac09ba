"""A planted feature is found, an edit that changes nothing changes nothing, and controls are matched."""

import types

import numpy as np
import pandas as pd
import pytest
import torch

from whisper_sae import profiles
from whisper_sae.causal import controls, edits, patching
from whisper_sae.data import clip_table
from whisper_sae.experiments import evaluation_clips, punctuation, token_features
from whisper_sae.model import scoring
from whisper_sae.sae import architectures

THE = token_features.Target("the", r" the", "word starts", 4.0)
HELD = token_features.Target("th", r" [Tt]h.*", "words", 0.0)
TARGETS = [THE, HELD]


@pytest.fixture(scope="module")
def heard(demo):
    found = clip_table.read(profiles.DEMO / "corpus")
    few = found[found.kind == "speech"].iloc[::60]
    return patching.hear(demo, [clip_table.samples(path) for path in few.path], ["encoder.3.resid", "decoder.1.resid"])


@pytest.fixture(scope="module")
def given(heard):
    return token_features.own_transcripts(heard["decoder.1.resid"], TARGETS)


@pytest.fixture(scope="module")
def last(heard, given):
    """A dictionary of the decoder's last stream in which feature 7 writes " the", and what it is used on."""
    whisper = heard["decoder.1.resid"].whisper
    site = f"decoder.{whisper.config.decoder_layers - 1}.resid"
    here = punctuation.in_decoder(heard["decoder.1.resid"], site)
    x = punctuation.activations_at(here, given)
    coder = architectures.create("topk", x.shape[1], 64, 8)
    coder.start_on(x)
    token = int(token_features.of_kind(token_features.vocabulary(whisper), THE).argmax())
    with torch.no_grad():
        row = whisper.whole.proj_out.weight[token] * whisper.decoder.layer_norm.weight
        coder.W_dec[7] = row / row.norm()
        coder.b_enc[7] += 10 * x.norm(dim=1).mean()  # it fires everywhere
    return here, coder.eval().requires_grad_(False), x


def test_positions_are_word_ends_and_starts(demo, heard, given):
    words, here = token_features.vocabulary(demo), heard["decoder.1.resid"]
    first = len(here.decoder.prompt)
    for row, tokens in enumerate(here.plain):
        at = [first - 1 + n for n, token in enumerate(tokens) if words[token].startswith(" ")]
        assert given.weights[0, row].nonzero().squeeze(1).tolist() == at
        assert given.used[row].nonzero().squeeze(1).tolist() == list(range(first - 1, first + len(tokens)))
        assert given.weights[0, row].sum().item() == pytest.approx(1)
        assert abs(given.weights[1, row].sum().item()) < 1e-5  # words of the kind less others
        th = [place for place in at if words[given.wanted[row, place]].startswith((" th", " Th"))]
        assert (given.weights[1, row] > 0).nonzero().squeeze(1).tolist() == (th if 0 < len(th) < len(at) else [])


def test_outcomes_are_log_odds_and_nothing_changes_nothing(heard, given):
    for site, here in heard.items():
        changes = {"nothing": patching.Change(lambda x, _: x), "moved": patching.Change(lambda x, _: -x)}
        plain, added = token_features.outcomes(here, changes, given, batch=3)
        np.testing.assert_allclose(np.nan_to_num(added["nothing"]), 0, atol=1e-4)
        assert np.nanmax(np.abs(added["moved"])) > 0.01, site
    p = here.decoder.logits(here.encoded[:1], given.ids[:1, : int(given.used[0].nonzero().max()) + 1])[0].softmax(-1)
    p = p[:, given.kinds[0]].sum(dim=-1)
    at = given.weights[0, 0].nonzero().squeeze(1)
    assert plain[0, 0] == pytest.approx((p / (1 - p)).log()[at].mean().item(), abs=1e-3)
    assert np.isnan(plain[1]).tolist() == (~given.has[1]).tolist()


def test_a_planted_feature_is_found_and_attribution_is_the_slope(last, given):
    here, coder, _ = last
    found = token_features.attribution(here, coder, given, batch=3)
    mean = np.nanmean(found.effect, axis=1)
    assert np.abs(mean[0]).argmax() == 7 and mean[0, 7] > 0 and found.rate[7] == 1
    best = punctuation.chosen(found, TARGETS, each=2)
    assert best.feature[best.target == "the"].tolist()[0] == 7 and punctuation.strongest(best, "the").feature == 7
    assert punctuation.strongest(best, "nothing") is None
    coded, step = patching.Coded(here, coder), 1e-2
    where = given.used
    added = token_features.outcomes(here, {"": coded.edit(edits.scale({7: 1 + step}), _longer(where))}, given)[1][""]
    np.testing.assert_allclose(added[0] / step, found.effect[0, :, 7], rtol=0.1, atol=0.02)


def _longer(where):
    return torch.cat([where, torch.zeros(len(where), 400, dtype=torch.bool)], dim=1)


def test_attribution_at_the_encoder_is_the_slope(heard, given):
    here = heard["encoder.3.resid"]
    x = here.held[here.valid]
    coder = architectures.create("topk", x.shape[1], 32, 6)
    coder.start_on(x)
    coder = coder.eval().requires_grad_(False)
    found = token_features.attribution(here, coder, given)
    best = int(np.nanmean(np.abs(found.effect[0]), axis=0).argmax())
    change = patching.Coded(here, coder).edit(edits.scale({best: 1.01}))
    added = token_features.outcomes(here, {"": change}, given)[1][""]
    np.testing.assert_allclose(added[0] / 0.01, found.effect[0, :, best], rtol=0.2, atol=0.05)
    assert ((found.position > -1e-3) & (found.position <= 1.001)).all()


def test_effects_beside_controls_within_the_caliper(last, given, tmp_path):
    here, coder, _ = last
    found = token_features.attribution(here, coder, given)
    best = punctuation.chosen(found, TARGETS, each=1)
    other = torch.nn.functional.normalize(torch.randn(coder.W_dec.shape, generator=torch.Generator().manual_seed(0)))
    edit = punctuation.Edits(patching.Coded(here, coder), given, other)
    table, each = punctuation.effects(edit, found, best, TARGETS)
    near = table[table.kind == "control"]
    for row in near.itertuples():
        assert controls.distance(found.rate, found.size, row.of)[row.feature] <= controls.CALIPER
    assert each.shape == (len(table), len(here)) and (table.kind == "nothing").sum() == 1
    written = punctuation.doses(edit, 7, [3], THE)
    assert (written[written.scale == 1].wrote.tolist()) == patching.said(here, here.plain)
    assert (written[written.scale == 1].kept == 1).all()
    table.assign(site=here.site).to_csv(tmp_path / "edits.csv", index=False)
    np.save(tmp_path / "each.npy", each)
    pd.DataFrame({"id": range(len(here)), "speaker": [f"s{n}" for n in range(len(here))]}).to_csv(
        tmp_path / "clips.csv", index=False
    )
    written.to_csv(tmp_path / "wrote.csv", index=False)
    step = punctuation.Step(tmp_path, {}, "")
    ways, curve = punctuation.judged(step), punctuation.dosed(step)
    assert punctuation.of_nothing(step) < 1e-3 and set(ways.feature) == set(best.feature)
    planted = ways[(ways.feature == 7) & (ways.target == "the")].iloc[0]
    assert planted.speakers == len(here) and planted.low <= planted.effect <= planted.high
    assert ways.p.isna().tolist() == (ways.matched < punctuation.CONTROLS).tolist()
    own = curve[curve.kind == "feature"].set_index("scale").rate
    assert own[4.0] >= own[1.0] and set(own.index) == {1.0, *punctuation.SCALES}
    assert "candidates" in punctuation.sentence(ways) and len(punctuation.changed(step, 2)) == 2


def test_intervals_are_over_speakers():
    each = np.array([[1.0, 3.0, 5.0, np.nan]])
    by = token_features.by_speaker(each, np.array(["a", "a", "b", "c"]))
    assert by[0, :2].tolist() == [2, 5] and np.isnan(by[0, 2])
    assert np.isnan(token_features.interval(np.ones(3))).all()
    values = np.random.default_rng(0).normal(1, 1, 40)
    low, high = token_features.interval(values)
    assert low < values.mean() < high and high - low == pytest.approx(4 * values.std() / np.sqrt(40), rel=0.2)


def test_the_token_of_a_feature():
    tokens = np.array([1, 1, 2, 2, 3, 3, 3, 3])
    f = np.zeros((8, 3))
    f[:2, 0], f[[0, 4, 5, 6], 1] = 1, 1
    told = token_features.fires_on(f, tokens).set_index("feature")
    assert told.token.tolist() == [1, 3] and told["count"].tolist() == [2, 3]
    assert told.lift.tolist() == [4, 1.5]


def test_a_model_without_punctuation_is_named(demo, heard):
    reason = punctuation.lacking(heard["encoder.3.resid"])
    assert "comma: written 0 times" in reason and "full stop" in reason
    capital = token_features.TARGETS["capital"]
    assert "vocabulary of 569" in token_features.missing(demo, [[1]], capital, 1)
    told = types.SimpleNamespace(plain=[], whisper=demo)
    assert punctuation.lacking(told)


def test_words_that_are_kept():
    assert punctuation.kept("One, two three.", "one two, THREE") == 1
    assert punctuation.kept("one two", "two") == 0.5 and punctuation.kept("", "a") == 0


def test_a_place_that_there_is_not(heard):
    with pytest.raises(ValueError, match="where is 'nowhere'"):
        token_features.own_transcripts(heard["encoder.3.resid"], [token_features.Target("x", "x", "nowhere", 1.0)])


def test_the_recipe_from_end_to_end(demo, heard, monkeypatch, tmp_path):
    """Of the demo's clips with targets that its model writes: candidates, effects, transcripts and tokens."""
    here = heard["encoder.3.resid"]
    coder = architectures.create("topk", here.held.shape[2], 48, 6)
    coder.start_on(here.held[here.valid])
    coder = coder.eval().requires_grad_(False)
    names = [f"s{n}" for n in range(len(here))]

    def gathered(_run, _seed, sites, splits=evaluation_clips.HELD_OUT, **_how):
        who = [f"{splits[0]} {name}" for name in names]
        table = pd.DataFrame({"id": names, "speaker": who, "split": splits[0]})
        return evaluation_clips.Gathered(table, dict.fromkeys(sites, here), scoring.Scorer([""] * len(names)))

    monkeypatch.setattr(evaluation_clips, "gathered", gathered)
    monkeypatch.setattr(evaluation_clips, "coder_of", lambda *_of: coder)
    for name, value in {"LEAST": 1, "STEPS": 20, "EACH": 1, "CONTROLS": 5, "SCALES": (0.0, 4.0)}.items():
        monkeypatch.setattr(punctuation, name, value)
    monkeypatch.setattr(token_features, "TARGETS", {"comma": THE._replace(name="comma"), "th": HELD})
    run = profiles.replace(profiles.choose("demo"), sites=("encoder.3.resid",))
    facts = punctuation.tested(run, 0).make(tmp_path, clips=None, trained=None)
    assert facts["speakers"] == len(here) and facts["targets"] == ["comma", "th"]
    assert facts["sites"] == ["encoder.3.resid", f"decoder.{demo.config.decoder_layers - 1}.resid"]
    step = punctuation.Step(tmp_path, {}, "")
    ways, curve = punctuation.judged(step), punctuation.dosed(step)
    assert set(ways.site) == set(facts["sites"]) and set(curve.target) == {"comma", "th"}
    assert punctuation.of_nothing(step) < 1e-3
    assert list(ways[list(punctuation.COLUMNS)].columns) == list(punctuation.COLUMNS)
    fires = punctuation.tokens_of_features(step)
    assert len(fires) and (fires.lift > 1).any() and fires.side.isin(["given", "next"]).all()
    assert len(punctuation.changed(step)) and "false discovery rate" in punctuation.sentence(ways)
