"""The decoder written out says what transformers says, and its sites are those that a hook would see."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from coders import agreement
from generated import generated
from transformers import GenerationConfig

from whisper_sae import profiles
from whisper_sae.causal import patching
from whisper_sae.data import clip_table
from whisper_sae.model import decoding, text, whisper_model

DEMO = profiles.DEMO


@pytest.fixture(scope="module")
def clips():
    found = clip_table.read(DEMO / "corpus")
    return found[found.kind == "speech"].iloc[::24]  # 20 clips


@pytest.fixture(scope="module")
def encoded(demo, clips):
    mels = whisper_model.mel(demo, [clip_table.samples(path) for path in clips.path])
    with torch.no_grad():
        return mels, demo.encoder(mels).last_hidden_state


def decoder_of(whisper):
    return decoding.Decoder(whisper, patching.prompt_of(whisper))


def test_transcripts_are_those_of_generate(demo, encoded):
    mels, heard = encoded
    wrote = decoder_of(demo).write(heard)
    texts = [one.strip() for one in demo.tokenizer.batch_decode(wrote)]
    assert texts == generated(demo, mels) == text.transcribe(demo, mels) and len(set(texts)) > 15
    assert len({len(one) for one in wrote}) > 2, "or none leaves the batch before another"


def test_those_that_end_early_leave_the_others_alone(demo, encoded):
    _, heard = encoded
    decoder = decoder_of(demo)
    assert agreement(decoder.write(heard), [decoder.write(one[None])[0] for one in heard]) >= 0.95


def test_a_checked_draft_is_what_would_have_been_written(demo, encoded):
    """Whatever the draft: the transcript itself, another clip's, nothing, one that begins or ends otherwise,
    nonsense."""
    _, heard = encoded
    decoder = decoder_of(demo)
    wrote = decoder.write(heard)
    rng = torch.Generator().manual_seed(0)
    nonsense = torch.randint(0, 560, (len(wrote), 30), generator=rng).tolist()
    drafts = {
        "the same": wrote, "another's": wrote[1:] + wrote[:1], "none": [[]] * len(wrote), "nonsense": nonsense,
        "cut": [one[:-2] for one in wrote], "longer": [[*one, 5, 6] for one in wrote],
        "one other": [[*one[:3], 9, *one[4:]] for one in wrote], "too long": [one * 9 for one in wrote],
    }  # fmt: skip
    for name, some in drafts.items():
        assert agreement(decoder.check(heard, some), wrote) >= 0.95, name  # drafts are read in other shapes


def test_a_loop_ends_the_transcript():
    speech_, unit = list(range(100, 120)), [7, 8, 9]
    assert decoding.until_loop(speech_ + unit * 40) == speech_ + unit * 10
    assert decoding.is_loop([5] * 30) and not decoding.is_loop([5] * 29) and not decoding.is_loop(speech_ * 3)
    assert decoding.until_loop(speech_ * 4) == speech_ * 4, "a period above PERIOD is no loop"


def test_the_decoder_stops_where_it_repeats_itself(demo, encoded, monkeypatch):
    _, heard = encoded
    decoder = decoder_of(demo)
    wrote = decoder.write(heard)
    again = iter(range(10**6))

    def by_turns(logits, first):
        return torch.nn.functional.one_hot(torch.full(logits.shape[:1], 5 + next(again) % 2), logits.shape[1])

    monkeypatch.setattr(decoder, "_suppressed", by_turns)
    assert decoder.write(heard) == [[5, 6] * 15] * len(heard)
    monkeypatch.undo()
    assert decoder.write(heard) == wrote


def test_a_transcript_has_no_more_tokens_than_its_limit(demo, encoded, monkeypatch):
    """Each row its own; what is cut is the beginning of what would have been written, from a draft, too."""
    _, heard = encoded
    decoder, limits = decoder_of(demo), torch.arange(len(heard)) % 5
    wrote = decoder.write(heard)
    cut = [one[:most] for one, most in zip(wrote, limits.tolist(), strict=True)]
    assert decoder.write(heard, limits=limits) == decoder.check(heard, wrote, limits=limits) == cut != wrote
    assert decoder.check(heard, [[]] * len(heard), limits=limits) == cut
    assert decoder.write(heard, limits=torch.full((len(heard),), 10**6)) == wrote
    steps = []
    monkeypatch.setattr(decoder, "step", lambda *args, step=decoder.step: steps.append(1) or step(*args))
    decoder.write(heard, limits=limits)
    assert len(steps) == max(limits.tolist()), "nothing is computed beyond the last limit"


def test_confidence_in_what_was_cut_is_without_an_end(demo, encoded):
    _, heard = encoded
    decoder = decoder_of(demo)
    wrote = [one[:4] for one in decoder.write(heard)]
    limits = torch.full((len(heard),), 4)
    ended = decoder.confidence(heard, wrote).mean_logprob
    cut = decoder.confidence(heard, wrote, limits=limits).mean_logprob
    room = decoder.confidence(heard, wrote, limits=limits + 1).mean_logprob
    assert all(len(one) == 4 for one in wrote)
    assert torch.equal(ended, room) and (cut > ended).all(), "an end after four tokens is improbable"


def test_no_transcript_of_real_speech_comes_near_its_limit(shared):
    """The references of all corpora: at most 5.6 tokens a second, and a third of the limit."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    share = []
    for name in ("librispeech-sample", "speechocean762", "speech-accent-archive-8k", "duke-alphanumeric"):
        clips = clip_table.read(shared / "speech" / name)
        clips = clips[(clips.text != "") & (clips.duration <= 30)]
        _, lengths = text.given(whisper, clips.text.tolist())
        share.append((lengths - 2) / decoding.most_tokens(clips.duration.to_numpy()).numpy())
    assert max(map(max, share)) < 0.4
    assert decoding.most_tokens([0.0, 0.1, 1.0, 30.0]).tolist() == [32, 34, 48, 512]


def test_logits_are_those_of_the_model(demo, encoded, clips):
    _, heard = encoded
    ids, _ = text.given(demo, clips.text.tolist())
    mine = decoder_of(demo).logits(heard, ids)
    with torch.no_grad():
        theirs = demo.whole(encoder_outputs=(heard,), decoder_input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "part", ["heads", "attn", "cross_heads", "cross", "mlp_in", "mlp_pre", "mlp_hidden", "mlp", "resid", "normed"]
)
def test_every_site_is_where_a_hook_has_it(demo, encoded, clips, part):
    """Half of what is said there, in a model with hooks and here: the same logits, and others than without."""
    _, heard = encoded
    ids, _ = text.given(demo, clips.text.tolist())
    site = f"decoder.0.{part}"
    norm = demo.decoder.layer_norm if part == "normed" else None
    decoder = decoder_of(demo)
    mine = decoder.logits(heard, ids, decoding.answering(site, lambda x, _: 0.5 * x, norm))
    with torch.no_grad(), whisper_model.at(demo, {site: lambda x: 0.5 * x}):
        theirs = demo.whole(encoder_outputs=(heard,), decoder_input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)
    assert (mine - decoder.logits(heard, ids)).abs().max() > 0.05


def test_the_embedding_is_a_site_too(demo, encoded, clips):
    _, heard = encoded
    ids, _ = text.given(demo, clips.text.tolist())
    mine = decoder_of(demo).logits(heard, ids, decoding.answering("decoder.embed", lambda x, _: 0.5 * x))
    with torch.no_grad(), whisper_model.at(demo, {"decoder.embed": lambda x: 0.5 * x}):
        theirs = demo.whole(encoder_outputs=(heard,), decoder_input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


def test_suppressed_tokens_and_the_length_are_as_generate_has_them(demo, encoded):
    mels, heard = encoded
    first = decoder_of(demo).write(heard)
    never, not_first = first[0][1], first[0][0]
    told = {name: value for name, value in demo.whole.generation_config.to_dict().items() if value is not None}
    told |= {"suppress_tokens": [never], "begin_suppress_tokens": [not_first], "max_length": 7}
    before, demo.whole.generation_config = demo.whole.generation_config, GenerationConfig.from_dict(told)
    try:
        wrote = decoder_of(demo).write(heard)
        checked = decoder_of(demo).check(heard, first)
        demo.whole.generation_config = GenerationConfig.from_dict(told)
        theirs = generated(demo, mels)
    finally:
        demo.whole.generation_config = before
    assert [one.strip() for one in demo.tokenizer.batch_decode(wrote, skip_special_tokens=True)] == theirs
    assert wrote == checked and wrote != first
    assert all(never not in one and one[:1] != [not_first] for one in wrote)


def forced(demo, heard, tokens):
    """log p of each token of transcripts and of the end, from plain transformers: a list of (position,) a row."""
    found = []
    for row, one in enumerate(tokens):
        ids = torch.tensor([[*patching.prompt_of(demo), *one]])
        with torch.no_grad():
            logits = demo.whole(encoder_outputs=(heard[row : row + 1],), decoder_input_ids=ids).logits[0]
        found.append(logits)
    return found


def test_confidence_is_that_of_whispers_rule(demo, encoded):
    """p(no speech) at the start token, and the mean log-probability of tokens and end, after suppression."""
    _, heard = encoded
    decoder, begun = decoder_of(demo), len(patching.prompt_of(demo))
    assert demo.tokenizer.convert_ids_to_tokens(decoder.no_speech) == "<|nospeech|>"
    wrote = [*decoder.write(heard)[:5], []]
    never, not_first = wrote[0][0], 3
    decoder.never, decoder.not_first = torch.tensor([never]), torch.tensor([not_first])
    wrote = [[token for token in one if token != never] for one in wrote]
    silent, mean, _ = decoder.confidence(heard[:6], wrote)
    for row, logits in enumerate(forced(demo, heard[:6], wrote)):
        torch.testing.assert_close(silent[row], logits[0].softmax(-1)[decoder.no_speech], rtol=1e-3, atol=1e-6)
        logits = logits[begun - 1 :]
        logits[:, never] = logits[0, not_first] = -torch.inf
        answers = torch.tensor([*wrote[row], decoder.end])
        mine = logits.log_softmax(-1)[torch.arange(len(answers)), answers].sum() / len(answers)
        torch.testing.assert_close(mean[row], mine, rtol=1e-3, atol=1e-4)
    decoder.no_speech = None
    assert decoder.confidence(heard[:1], wrote[:1])[0].isnan().all()


def test_only_without_suppression_at_the_beginning_a_transcript_can_be_empty(demo):
    """As OpenAI's configs have it: the end of text is among the suppressed."""
    with torch.no_grad():
        heard = demo.encoder(whisper_model.mel(demo, [torch.zeros(16_000).numpy()])).last_hidden_state
    decoder = decoder_of(demo)
    assert decoder.write(heard) == [[]], "the demo's model suppresses nothing"
    decoder.not_first = torch.tensor([decoder.end])
    wrote = decoder.write(heard)
    assert wrote[0] and decoder.check(heard, [[]]) == wrote
    other = decoder.allowing_empty()
    assert other.write(heard) == other.check(heard, wrote) == [[]] and decoder.write(heard) == wrote


def test_what_is_under_the_norm_is_turned_back_exactly():
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, step = torch.randn(3, 5, 8), torch.randn(8)
    with torch.no_grad():
        assert torch.equal(decoding.beneath(norm, x, lambda said: said), x)
        new = decoding.beneath(norm, x, lambda said: said + step)
        mean, deviation = x.mean(-1, keepdim=True), (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()
        torch.testing.assert_close((new - mean) / deviation * norm.weight + norm.bias, norm(x) + step)


def test_without_a_decoder_it_says_so(demo):
    with pytest.raises(whisper_model.BadModel, match="only encoder weights"):
        decoding.Decoder(replace(demo, decoder=None, whole=SimpleNamespace()), [1])
