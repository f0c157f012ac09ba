"""Edits go on from where a clip was heard to, and say what a hook and a whole run of the model say."""

import numpy as np
import pandas as pd
import pytest
import torch
from coders import agreement
from generated import generated

from whisper_sae import profiles
from whisper_sae.causal import edits, patching
from whisper_sae.data import clip_table
from whisper_sae.model import decoding, whisper_model
from whisper_sae.sae import architectures

DEMO = profiles.DEMO
SITES = ["encoder.embed", "encoder.1.resid", "encoder.1.mlp_hidden", "encoder.3.normed", "decoder.0.resid"]


@pytest.fixture(scope="module")
def clips() -> pd.DataFrame:
    found = clip_table.read(DEMO / "corpus")
    return pd.concat([found[found.kind == "speech"].iloc[::40], found[found.kind == "sound"].iloc[::28]])  # 12 and 2


@pytest.fixture(scope="module")
def sounds(clips):
    return [clip_table.samples(path) for path in clips.path]


@pytest.fixture(scope="module")
def heard(demo, sounds):
    return patching.hear(demo, sounds, SITES)


def coder_for(width: int, x: torch.Tensor, variant: str = "batchtopk") -> architectures.SAE:
    """An SAE that was not trained, fitted in size to some frames: (frame, width)."""
    coder = architectures.create(variant, width, 64, 8)
    coder.start_on(x)
    if isinstance(coder, architectures.BatchTopK):
        coder.calibrate([x])
    return coder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def coded(heard):
    here = heard["encoder.1.resid"]
    return patching.Coded(here, coder_for(192, here.held[here.valid]))


def whole(demo, sounds, site, see, one_by_one=False):
    """The naive way: a hook, and `generate`; of all clips together, or clip by clip."""
    parts = [[number] for number in range(len(sounds))] if one_by_one else [list(range(len(sounds)))]
    wrote = []
    for part in parts:
        look = lambda x, part=part: see(x, torch.tensor(part))  # noqa: E731
        last = site == "encoder.3.normed"  # what the decoder is given: `at` would have it normed again
        with whisper_model.watching(demo.encoder.layer_norm, look) if last else whisper_model.at(demo, {site: look}):
            wrote += generated(demo, whisper_model.mel(demo, [sounds[number] for number in part]))
    return wrote


# ------------------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("site", SITES[:-1])
def test_going_on_from_the_site_is_running_it_all_with_a_hook(demo, sounds, heard, site):
    here = heard[site]
    mask = here.valid

    def see(x, clips):
        return torch.where(mask[clips][..., None], -0.3 * x, x)

    mine = patching.write(here, {"less": patching.Change(lambda x, _: -0.3 * x)})["less"]
    assert mine == whole(demo, sounds, site, see)
    assert mine != patching.said(here, here.plain)


def test_a_site_of_the_decoder_is_answered_at_every_step(demo, sounds, heard):
    here = heard["decoder.0.resid"]
    step = 12 * torch.randn(192, generator=torch.Generator().manual_seed(1))
    mine = patching.write(here, {"steered": patching.Change(lambda x, _: x + step)}, batch=5)["steered"]
    assert agreement(mine, whole(demo, sounds, here.site, lambda x, _: x + step, one_by_one=True)) >= 0.9
    assert mine != patching.said(here, here.plain)
    first = torch.zeros(len(here), 64, dtype=torch.bool)
    none = patching.write(here, {"nowhere": patching.Change(lambda x, _: x + step, where=first)})["nowhere"]
    assert none == patching.said(here, here.plain)
    first[:, :3] = True
    early = patching.write(here, {"early": patching.Change(lambda x, _: x + step, where=first)})["early"]
    assert early not in (mine, none)


def test_plain_transcripts_are_those_of_transformers(demo, sounds, heard):
    wrote = generated(demo, whisper_model.mel(demo, sounds))
    assert all(patching.said(here, here.plain) == wrote for here in heard.values())


@pytest.mark.parametrize("site", SITES)
def test_an_edit_that_changes_nothing_writes_the_same_tokens(heard, site):
    here = heard[site]
    width = 768 if site.endswith("mlp_hidden") else 192
    coded = patching.Coded(here, coder_for(width, torch.randn(500, width)))
    changes = {
        "identity": patching.Change(lambda x, _: x),
        "scale 1": coded.edit(edits.scale(dict.fromkeys(range(64), 1.0))),
    }
    assert patching.tokens(here, changes) == {"identity": here.plain, "scale 1": here.plain}


def test_bit_for_bit_the_same_is_given_to_the_decoder(heard, coded):
    here, clips = heard["encoder.1.resid"], torch.arange(6)
    change = coded.edit(edits.scale(dict.fromkeys(range(64), 1.0)))
    nothing = patching.Change(lambda x, _: x)
    with torch.no_grad():
        assert torch.equal(patching._encoded(here, [(change, clips)]), patching._encoded(here, [(nothing, clips)]))


# ------------------------------------------------------------------------------------------------- changes


def loud(coded, count=6):
    return np.argsort(-coded.rates)[:count].tolist()


def test_a_batch_of_many_edits_is_each_of_them_alone(heard, coded):
    here = heard["encoder.1.resid"]
    some = loud(coded)
    changes = {f"{feature}": coded.edit(edits.scale({feature: -12.0})) for feature in some}
    together = patching.write(here, changes, batch=5)
    assert together.keys() == changes.keys()
    for name, change in changes.items():
        assert agreement(together[name], patching.write(here, {name: change})[name]) >= 0.9, name
    assert len({tuple(wrote) for wrote in together.values()}) > 1


@pytest.mark.parametrize("site", ["encoder.1.resid", "decoder.0.resid"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_reach_the_model(heard, site, value):
    with pytest.raises(ValueError, match=f"{site}: a change gives values that are not finite"):
        patching.tokens(patching.some(heard[site], np.arange(2)), {"": patching.Change(lambda x, _: x + value)})


def test_outcomes_are_those_of_the_tokens_written(heard):
    here = patching.some(heard["encoder.1.resid"], np.array([0, 1, 12]))
    less = patching.Change(lambda x, clips: x * torch.tensor([1.0, 0.9, 1.0])[clips][:, None, None])
    found = patching.outcomes(here, {"same": patching.Change(lambda x, _: x), "less": less}, batch=2)
    assert found["same"].wrote.tolist() == patching.said(here, here.plain)
    assert found["less"].wrote.tolist() == patching.write(here, {"": less})[""]
    assert found["same"].wrote_or_empty.tolist() == found["same"].wrote.tolist(), "the demo suppresses nothing"
    assert found["same"].no_speech.between(0, 1).all() and (found["same"].mean_logprob < 0).all()
    assert found["same"].mean_logprob[0] == pytest.approx(found["less"].mean_logprob[0], abs=1e-5)
    assert found["same"].mean_logprob[1] != found["less"].mean_logprob[1]


def test_tokens_end_at_the_limit_of_a_clips_duration(demo, sounds, heard, monkeypatch):
    """Plain and changed, from the encoder and in the decoder; with a limit that speech does reach."""
    monkeypatch.setattr(decoding, "SPARE", 1)
    monkeypatch.setattr(decoding, "TOKENS_A_SECOND", 1)
    limits = heard[SITES[1]].limits().tolist()
    assert limits == [1 + int(np.ceil(len(sound) / 16_000 - 1e-9)) for sound in sounds]
    for site, here in patching.hear(demo, sounds, [SITES[1], SITES[-1]]).items():
        wrote = patching.tokens(here, {"less": patching.Change(lambda x, _: -0.3 * x)})["less"]
        for tokens in (here.plain, wrote):
            assert all(len(one) <= most for one, most in zip(tokens, limits, strict=True)), site
        assert any(len(one) == most for one, most in zip(here.plain, limits, strict=True)), site
        assert here.plain == [one[:most] for one, most in zip(heard[site].plain, limits, strict=True)]


def test_clips_in_which_a_silenced_feature_never_fires_are_not_run(heard, coded):
    here = heard["encoder.1.resid"]
    dense = coded.of(range(64))
    rare = min((f for f in range(64) if coded.rates[f] > 0), key=lambda f: coded.fires([f]).sum())
    change = coded.edit(edits.silence([rare]))
    fires = (dense[..., rare] > 0).any(dim=1).numpy()
    assert change.touched.tolist() == fires.tolist() == coded.fires([rare]).tolist()
    assert coded.edit(edits.hold({rare: 1.0})).touched.all(), "one that wakes it changes all"
    everything = patching.Change(change.see, None, change.where)
    assert patching.write(here, {"a": change}) == patching.write(here, {"a": everything})


def test_padding_is_left_alone_unless_it_is_asked_for(heard, coded):
    here = heard["encoder.1.resid"]
    seen = {}
    for name, change in {"valid": coded.spliced(), "all": coded.spliced(everywhere=True)}.items():
        said = patching._told(here, [(change, torch.arange(4))])(here.held[:4])
        seen[name] = (said != here.held[:4]).any(dim=-1)
    assert torch.equal(seen["valid"], here.valid[:4])
    assert seen["all"].all()
    assert not here.valid.all() and torch.equal(coded.of([3])[~here.valid], torch.zeros(int((~here.valid).sum()), 1))
    padded = patching.Coded(here, coded.coder, padding=True)
    assert padded.codes.nnz > coded.codes.nnz


def test_an_edit_is_limited_to_its_frames(heard, coded):
    here = heard["encoder.1.resid"]
    where = edits.between(len(here), here.whisper.positions, 10, 20)
    change = coded.edit(edits.add({loud(coded)[0]: 5.0}), where)
    said = patching._told(here, [(change, torch.arange(len(here)))])(here.held)
    moved = (said != here.held).any(dim=-1)
    assert torch.equal(moved, where & here.valid) and moved.any()
    nowhere = coded.edit(edits.silence(loud(coded)), where & False)
    assert not nowhere.touched.any()


def test_codes_are_those_of_the_coder(heard, coded):
    here = heard["encoder.1.resid"]
    f = coded.coder.encode(here.held[2, here.valid[2]])
    torch.testing.assert_close(coded.of(range(64), np.array([2]))[0, here.valid[2]], f, rtol=1e-4, atol=1e-4)
    fired = sum((coded.coder.encode(x[v]) > 0).sum(dim=0) for x, v in zip(here.held, here.valid, strict=True))
    np.testing.assert_allclose(coded.rates, fired.numpy() / here.valid.sum().item(), atol=1e-4)


def test_what_was_trained_under_the_last_norm_is_what_the_decoder_gets(heard, demo):
    """There the site is the encoder's output itself: what an edit adds arrives to the bit."""
    here, step = heard["encoder.3.normed"], torch.randn(192)
    change = patching.Change(lambda x, _: x + step)
    with torch.no_grad():
        given = patching._encoded(here, [(change, torch.arange(3))])
        normed = demo.encoder.layer_norm(here.held[:3])
    expected = torch.where(here.valid[:3][..., None], normed + step, normed)
    assert torch.equal(given, expected)


def test_some_clips_are_the_same_clips(heard, coded):
    here = heard["encoder.1.resid"]
    chosen = [5, 2, 9, 0, 7, 1, 11, 3, 8, 4]
    few = patching.some(here, np.array(chosen))
    change = patching.Change(lambda x, _: 0.6 * x)
    every = patching.write(here, {"": change})[""]
    assert agreement(patching.write(few, {"": change})[""], [every[clip] for clip in chosen]) >= 0.9
    assert few.plain == [here.plain[clip] for clip in chosen]


def test_a_clip_that_is_too_long_is_refused(demo):
    with pytest.raises(whisper_model.BadModel, match="longer than the window"):
        patching.hear(demo, [np.zeros(9 * 16_000, np.float32)], ["encoder.1.resid"])


@pytest.mark.slow
def test_on_real_weights_edits_go_on_as_they_should(shared):
    """OpenAI's tiny.en on the digits of two speakers."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    digits = clip_table.read(shared / "speech" / "free-spoken-digits")
    pause, sounds = np.zeros(1600, np.float32), []
    for turn, speaker in enumerate(sorted(digits.speaker.unique())[:2]):
        some = digits[digits.speaker == speaker].sample(4, random_state=turn)
        sounds.append(np.concatenate([part for path in some.path for part in (clip_table.samples(path), pause)]))
    here = patching.hear(whisper, sounds, ["encoder.2.resid"])["encoder.2.resid"]
    assert patching.said(here, here.plain) == generated(whisper, whisper_model.mel(whisper, sounds))
    coded = patching.Coded(here, coder_for(384, here.held[here.valid]))
    same = patching.tokens(here, {"": coded.edit(edits.scale(dict.fromkeys(range(64), 1.0)))})[""]
    assert same == here.plain
    mean = here.held[here.valid].mean(dim=0)
    deaf = patching.Change(lambda x, _: mean.expand_as(x))
    mine = patching.write(here, {"": deaf})[""]
    assert mine != patching.said(here, here.plain)
    hooked = whole(whisper, sounds, here.site, lambda x, clips: torch.where(here.valid[clips][..., None], mean, x))
    assert mine == hooked


@pytest.mark.parametrize("most", [1, 1500 * 3, 1500 * 3 * 2, 10**9])
def test_codes_of_a_few_clips_at_a_time_give_the_same_edit(most):
    see = lambda x, clips: x + clips[:, None, None]  # noqa: E731
    x, clips = torch.zeros(5, 1500, 2), torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    assert torch.equal(patching._in_parts(see, 3, most)(x, clips), see(x, clips))
    assert torch.equal(patching._in_parts(see, 0, most)(x, clips), see(x, clips))


def test_sites_share_what_they_hold_of_some_clips(heard):
    few = patching.some_at_sites(heard, np.array([3, 0]))
    assert set(few) == set(heard) and len({id(one.encoded) for one in few.values()}) == 1
    for site, one in few.items():
        alone = patching.some(heard[site], np.array([3, 0]))
        assert torch.equal(one.held, alone.held) and torch.equal(one.valid, alone.valid) and one.plain == alone.plain
