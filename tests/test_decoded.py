"""What is recorded of the decoder is what plain transformers says of the same tokens, in the order that is told."""

import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from whisper_sae import cache, profiles
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, sae_comparison
from whisper_sae.model import whisper_model

WHISPER, CORPUS = profiles.DEMO / "whisper", profiles.DEMO / "corpus"
SITES = ("decoder.*",)
pytestmark = pytest.mark.skipif(not (WHISPER / "model.safetensors").exists(), reason="the demo's model is not there")


@pytest.fixture
def few(tmp_path):
    """A corpus of six clips of the demo, of all splits, one of them without words: `few(texts={clip: text})`.

    With `long` one more lies among them, which is longer than a window.
    """

    def write(texts=None, *, long=False, name="few"):
        folder = tmp_path / name
        (folder / "audio").mkdir(parents=True)
        clips = pd.read_csv(CORPUS / "metadata.csv", keep_default_na=False, dtype=str)
        spoken = clips[clips.kind == "speech"]
        some = [spoken[spoken.split == split].iloc[:n] for split, n in (("train", 2), ("validation", 2), ("test", 1))]
        some = pd.concat([*some, clips[(clips.kind == "sound") & (clips.split == "train")].head(1)], ignore_index=True)
        for file in some.file_name:
            shutil.copy(CORPUS / file, folder / file)
        for number, text in (texts or {}).items():
            some.loc[number, "text"] = text
        if long:
            sound = np.concatenate([clip_table.samples(folder / file) for file in some.file_name])[: 9 * 16_000]
            assert len(sound) == 9 * 16_000
            soundfile.write(folder / "audio" / "long.flac", sound, 16_000)
            more = some.iloc[[0]].assign(file_name="audio/long.flac", text="a long story")
            some = pd.concat([some.iloc[:2], more, some.iloc[2:]])
        some.to_csv(folder / "metadata.csv", index=False)
        return folder

    return write


@pytest.fixture
def speaking(few, data, run_for):
    """Records the decoder: `speaking(folder, given, **fields)` gives (table of clips, windows, tokens, Activations)."""

    def make(folder=None, given="transcript", **fields):
        run = run_for(WHISPER, folder or few(), **{"sites": SITES} | fields)
        heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
        step = cache.make(pipeline.decoded(run, 0, given))
        return heard, step.table("windows.csv"), step.table("tokens.csv"), store.Activations(step.path)

    return make


def rows(recorded, site):
    return recorded.rows(site).take(np.arange(recorded.spans[:, 2].sum()))


# ------------------------------------------------------------------------------------------ what is written


def test_rows_are_the_hidden_states_of_plain_transformers(speaking):
    """Every layer, every clip on its own; the last hidden state is after the final layer norm."""
    heard, windows, tokens, recorded = speaking(dtype="float32")
    plain = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32).eval()
    features, tokenizer = (kind.from_pretrained(WHISPER) for kind in (WhisperFeatureExtractor, WhisperTokenizer))
    assert len(windows) == 6 and (heard.text == "").sum() == 1
    for number, clip in enumerate(windows["clip"]):
        text = heard.text[clip]
        ids = tokenizer(f" {text}" if text else "", return_tensors="pt").input_ids[:, :-1]
        assert tokens[tokens.window == number].token_id.tolist() == ids[0].tolist()
        mels = features(clip_table.samples(heard.path[clip]), sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            said = plain(mels, decoder_input_ids=ids, output_hidden_states=True).decoder_hidden_states
        mine = [
            torch.from_numpy(np.array(recorded.window(f"decoder.{site}", number)))
            for site in ("embed", "0.resid", "1.resid")
        ]
        mine[2] = plain.model.decoder.layer_norm(mine[2]).detach()
        for ours, theirs in zip(mine, said, strict=True):
            torch.testing.assert_close(ours, theirs[0], atol=2e-4, rtol=1e-4)


def test_rows_are_in_the_order_of_the_tokens(speaking):
    """What goes into the first layer is a token's embedding and its position's, so each row can be told from it."""
    heard, windows, tokens, recorded = speaking(batch_windows=2, shard_windows=4)
    assert len(tokens) == recorded.spans[:, 2].sum() and len({*recorded.spans[:, 0]}) == 2
    decoder = whisper_model.load(str(WHISPER), "cpu").decoder
    places = decoder.embed_positions.weight[torch.tensor(tokens.position.to_numpy())]
    wanted = decoder.embed_tokens.weight[torch.tensor(tokens.token_id.to_numpy())] + places
    torch.testing.assert_close(rows(recorded, "decoder.embed"), wanted, rtol=2**-10, atol=1e-5)
    per_window = recorded.rows("decoder.embed").per_window(np.arange(len(windows)))
    assert tokens.window.tolist() == per_window.tolist()
    assert recorded.valid_kinds().tolist() == np.where(tokens.word < 0, 1, 2).tolist()
    assert set(tokens[tokens.word < 0].token) == {"<|startoftranscript|>", "<|notimestamps|>"}
    said = tokens[tokens.word >= 0].groupby("window").token.agg("".join).str.strip()
    assert said.reindex(windows.index, fill_value="").tolist() == heard.text[windows["clip"]].tolist()
    assert list(recorded.sites) == list(whisper_model.sites(whisper_model.load(str(WHISPER), "cpu").config, SITES))


def test_how_many_are_heard_at_once_changes_nothing(speaking, few):
    """Short rows are filled up, and what fills them is not heard."""
    folder, sites = few(), ("decoder.?.resid",)
    alone, together = (speaking(folder, sites=sites, batch_windows=size)[3] for size in (1, 6))
    assert len({*alone.spans[:, 2]}) > 2, "rows are of different lengths"
    for site in alone.sites:
        torch.testing.assert_close(rows(alone, site), rows(together, site), rtol=2**-9, atol=1e-3)


def test_the_start_alone_is_the_first_row_of_the_transcript(speaking, few):
    folder = few()
    _, windows, tokens, whole = speaking(folder)
    _, same, only, start = speaking(folder, "start")
    pd.testing.assert_frame_equal(windows, same)
    assert only.token.tolist() == ["<|startoftranscript|>"] * 6 and only.window.tolist() == list(range(6))
    assert start.kinds.tolist() == [[1]] * 6
    first = torch.tensor((tokens.position == 0).to_numpy())
    for site in whole.sites:
        torch.testing.assert_close(rows(start, site), rows(whole, site)[first], rtol=2**-9, atol=1e-3)
    apart = torch.cdist(rows(start, "decoder.1.resid"), rows(start, "decoder.1.resid"))
    assert apart[~torch.eye(6, dtype=torch.bool)].min() > 0.1, "clips can be told apart before any word"


def test_the_transcript_matters_and_so_does_the_sound(speaking, few):
    _, _, tokens, recorded = speaking(few({0: "one text", 1: "one text"}, name="alike"))
    one, two = (torch.from_numpy(np.array(recorded.window("decoder.1.resid", number))).float() for number in (0, 1))
    assert tokens[tokens.window == 0].token.tolist() == tokens[tokens.window == 1].token.tolist()
    assert (one - two).abs().max() > 0.1


def test_a_clip_longer_than_a_window_is_left_out_and_counted(speaking, few, data, run_for):
    folder, without = few(long=True, name="long"), few()
    heard, windows, tokens, recorded = speaking(folder)
    assert heard.id[2] == "audio/long" and windows["clip"].tolist() == [0, 1, 3, 4, 5, 6]
    step = cache.need(pipeline.decoded(run_for(WHISPER, folder, sites=SITES), 0))
    assert step.facts["clips_left_out"] == 1 and step.facts["windows"] == 6
    _, _, same, plain = speaking(without)
    pd.testing.assert_frame_equal(tokens, same)
    torch.testing.assert_close(rows(recorded, "decoder.1.resid"), rows(plain, "decoder.1.resid"), rtol=2**-9, atol=1e-3)


def test_the_twin_is_given_the_same_tokens(few, data, run_for):
    run = run_for(WHISPER, few(), sites=SITES)
    cache.make(pipeline.clips(run, 0))
    steps = [cache.make(pipeline.decoded(one, 0)) for one in (run, pipeline.twin(run))]
    assert steps[0].key != steps[1].key
    pd.testing.assert_frame_equal(*(step.table("tokens.csv") for step in steps))
    trained, untrained = (rows(store.Activations(step.path), "decoder.1.resid") for step in steps)
    assert (trained - untrained).abs().max() > 0.1


# ----------------------------------------------------------------------------------------- what is asked for


def test_encoder_and_decoder_are_recorded_apart(few, data, run_for):
    run = run_for(WHISPER, few(), sites=("encoder.1.*", "decoder.0.resid", "*.embed"))
    cache.make(pipeline.clips(run, 0))
    sides = {side: cache.make(pipeline.recorded(run, 0, f"{side}.embed")) for side in ("encoder", "decoder")}
    parts = ("heads", "attn", "mlp_in", "mlp_pre", "mlp_hidden", "mlp", "resid")
    assert list(sides["encoder"].facts["sites"]) == ["encoder.embed", *(f"encoder.1.{part}" for part in parts)]
    assert list(sides["decoder"].facts["sites"]) == ["decoder.embed", "decoder.0.resid"]
    assert pipeline.recorded(run, 0, "decoder.0.resid").key == sides["decoder"].key
    assert pipeline.recorded(run, 0, "encoder.1.mlp").key == pipeline.activations(run, 0).key == sides["encoder"].key


def test_sites_of_the_decoder_do_not_change_what_the_encoder_gave(few, data, run_for):
    folder = few()
    run, more = (run_for(WHISPER, folder, sites=("encoder.*.resid", *some)) for some in ((), SITES))
    assert pipeline.activations(run, 0).key == pipeline.activations(more, 0).key


def test_a_dictionary_of_the_decoder_is_made(few, data, run_for):
    run = run_for(WHISPER, few(), sites=SITES, expansion=2, tokens=400, batch_tokens=32)
    cache.make(pipeline.clips(run, 0))
    acts = cache.make(pipeline.decoded(run, 0))
    step = cache.make(sae_comparison.dictionary(run, 0, "decoder.1.resid"))
    tokens, heard = acts.table("tokens.csv"), pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    clip = acts.table("windows.csv")["clip"].to_numpy()[tokens.window]
    assert step.facts["frames"] == (heard.split[clip] == "validation").sum() > 0
    assert len(step.array("firing.npy")) == 2 * 192 and np.isfinite(step.facts["fvu"])


# -------------------------------------------------------------------------------------- what cannot be done


def refused(run, kind=whisper_model.BadModel, given="transcript") -> str:
    """The one line with which a recording is refused; nothing is left that looks like a result."""
    with pytest.raises(kind) as said:
        cache.make(pipeline.clips(run, 0))
        cache.make(pipeline.decoded(run, 0, given))
    assert "\n" not in str(said.value)
    return str(said.value)


def test_a_transcript_of_too_many_tokens_is_named(few, data, run_for):
    run = run_for(WHISPER, few({3: "stranger " * 40}), sites=SITES)
    said = refused(run)
    named = pipeline.table(run, cache.need(pipeline.clips(run, 0))).id[3]
    assert said == f"{named}: its transcript is 82 tokens; the decoder takes 64"
    with pytest.raises(cache.NotMade):
        cache.need(pipeline.decoded(run, 0))
    assert cache.make(pipeline.decoded(run, 0, "start")).facts["windows"] == 6


def test_an_unknown_way_of_speaking_is_refused(few, data, run_for):
    said = refused(run_for(WHISPER, few(), sites=SITES), ValueError, "whisper")
    assert said == "given: 'whisper' is not one of transcript, start"


def test_encoder_weights_alone_cannot_speak(few, data, run_for, tmp_path):
    folder = shutil.copytree(WHISPER, tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".decoder." not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "only encoder weights here" in refused(run_for(folder, few(), sites=SITES))


def test_without_a_tokenizer_nothing_can_be_given(small_whisper, few, data, run_for):
    assert "no tokenizer.json here" in refused(run_for(small_whisper, few(), sites=SITES))


def test_a_profile_without_sites_of_a_side_says_so(few, data, run_for):
    run = run_for(WHISPER, few(), sites=("encoder.*.resid", "encoder.embed"))
    assert refused(run) == "sites: none of encoder.*.resid, encoder.embed lies in the decoder"
    with pytest.raises(whisper_model.BadModel, match=r"sites: none of decoder\.\* lies in the encoder"):
        pipeline.activations(run_for(WHISPER, few(name="more"), sites=SITES), 0)


def test_clips_that_are_all_too_long_leave_nothing_to_record(few, data, run_for):
    folder = few(long=True)
    clips = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    clips[clips.file_name == "audio/long.flac"].to_csv(folder / "metadata.csv", index=False)
    assert "window" in refused(run_for(WHISPER, folder, sites=SITES), ValueError)
