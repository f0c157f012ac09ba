"""Every clip is decoded and scored in its language, and an English-only model is never given one."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from generated import generated
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from whisper_sae import cache, profiles
from whisper_sae.causal import losses, patching
from whisper_sae.data import clip_table
from whisper_sae.experiments import evaluation_clips, pipeline, sanity_checks
from whisper_sae.model import languages, scoring, text, whisper_model

WHISPER = profiles.DEMO / "whisper"
TOKENS = {"<|en|>": 562, "<|de|>": 563}


def changed(folder, file: str, **fields) -> None:
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(told | fields))


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> whisper_model.Whisper:
    """The demo's Whisper as if it knew English and German; what it writes in German is nonsense, but other nonsense."""
    folder = shutil.copytree(WHISPER, tmp_path_factory.mktemp("several") / "several")
    changed(folder, "generation_config.json", is_multilingual=True, lang_to_id=TOKENS, task_to_id={"transcribe": 564})
    return whisper_model.load(str(folder), "cpu")


@pytest.fixture(scope="module")
def sounds():
    found = clip_table.read(profiles.DEMO / "corpus")
    return [clip_table.samples(path) for path in found[found.kind == "speech"].path.iloc[:120:40]]


# -------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["de", "DE", "German", "german", "de-DE", "de_de", "deu", " de "])
def test_names_of_german(name):
    assert languages.code_of(name) == "de"


@pytest.mark.parametrize(
    ("name", "code"), [("zh-CN", "zh"), ("sv-SE", "sv"), ("Castilian", "es"), ("jv", "jw"), ("ga-IE", ""), ("", "")]
)
def test_names_of_others(name, code):
    assert languages.code_of(name) == code


@pytest.mark.parametrize(("wrong", "meant"), [("germen", "german"), ("Frensh", "french")])
def test_a_language_that_is_none_is_named_with_what_was_meant(tmp_path, wrong, meant):
    (tmp_path / "run.toml").write_text(f'base = "tiny"\nlanguage = "{wrong}"\n')
    with pytest.raises(
        ValueError, match=f"run.toml: language: '{wrong}' is no language.*did you mean '{meant}'"
    ) as said:
        profiles.choose(str(tmp_path / "run.toml"))
    assert "\n" not in str(said.value)


def test_an_english_only_model_refuses_another_language(tmp_path, demo):
    (tmp_path / "run.toml").write_text('base = "tiny"\nlanguage = "de"\nmodel = "openai/whisper-tiny.en"\n')
    with pytest.raises(ValueError, match=r"language: openai/whisper-tiny\.en is an English-only model"):
        profiles.choose(str(tmp_path / "run.toml"))
    with pytest.raises(whisper_model.BadModel, match=r"English-only model and cannot decode German \(de\)"):
        text.require_language(demo, "German")
    text.require_language(demo, "en")
    text.require_language(demo, "")


def test_a_language_that_the_model_has_no_token_for_is_refused(several):
    text.require_language(several, "German")
    with pytest.raises(whisper_model.BadModel, match=r"has no token for Welsh \(cy\); known: en, de"):
        text.require_language(several, "cy")


# -------------------------------------------------------------------------------------------- of each clip


def test_the_corpus_tells_the_language_of_each_clip_and_the_profile_wins():
    clips = pd.DataFrame({"language": ["", "German", np.nan, "ga-IE"], "locale": ["de-AT", "en", "", ""]})
    assert languages.recorded(clips).tolist() == ["de", "de", "", "ga-ie"]
    assert languages.of_clips(clips).tolist() == ["de", "de", "en", "ga-ie"]
    assert languages.of_clips(clips, "French").tolist() == ["fr"] * 4
    assert languages.of_clips(pd.DataFrame({"id": ["a"]})).tolist() == ["en"]


@pytest.mark.parametrize("twin", ["", whisper_model.UNTRAINED], ids=["trained", "twin"])
def test_the_prompt_holds_language_and_task(several, twin):
    whisper = whisper_model.load(twin + several.name, "cpu")
    told = text.strings(whisper, *text.given(whisper, ["a garden", "a"], ["de", "en"]))
    first = told[told.row == 0]
    assert first.token_id[:4].tolist() == [561, TOKENS["<|de|>"], 564, 568]
    assert first.token[[0, 2, 3]].tolist() == ["<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"]
    assert first.word[:5].tolist() == [-1, -1, -1, -1, 0]
    assert told[told.row == 1].token_id.iloc[1] == TOKENS["<|en|>"]
    assert text.prompt(whisper, "cy") == text.prompt(whisper, "en"), "no token of its own"


def test_an_english_only_model_is_never_given_a_language(demo):
    assert text.languages_of(demo) == {} and text.prompt(demo, "de") == text.prompt(demo)
    assert text.given(demo, ["a"], ["de"])[0].tolist() == text.given(demo, ["a"])[0].tolist()


def test_clips_of_several_languages_are_decoded_as_each_alone(several, sounds):
    mels, spoken = whisper_model.mel(several, sounds), ["de", "en", "de"]
    together = text.transcribe(several, mels, spoken)
    alone = [text.transcribe(several, mels[[row]], [one])[0] for row, one in enumerate(spoken)]
    assert together == alone == [
        generated(several, mels[[row]], language=one, task="transcribe")[0] for row, one in enumerate(spoken)
    ]  # fmt: skip
    assert together != text.transcribe(several, mels)


def test_the_detected_language_is_that_of_transformers(several, sounds, demo):
    encoded = several.encoder(whisper_model.mel(several, sounds)).last_hidden_state
    codes, p = text.detect_languages(several, encoded)
    right = several.whole.detect_language(
        encoder_outputs=BaseModelOutput(encoded), generation_config=several.whole.generation_config
    )
    assert [TOKENS[f"<|{code}|>"] for code in codes] == right.flatten().tolist() and (p >= 0.5).all()
    with pytest.raises(ValueError, match="English-only"):
        text.detect_languages(demo, encoded)


def test_edits_and_teacher_forcing_are_in_the_language_of_the_clip(several, sounds):
    spoken, site = ["de", "en", "de"], "encoder.1.resid"
    heard = patching.hear(several, sounds, [site, "decoder.0.resid"], languages=spoken)
    here = heard[site]
    assert patching.said(here, here.plain) == text.transcribe(several, whisper_model.mel(several, sounds), spoken)
    assert losses.forced(here, ["a"] * 3).ids[:, 1].tolist() == [TOKENS[f"<|{one}|>"] for one in spoken]
    half = patching.Change(lambda x, _: 0.5 * x)
    for one in heard.values():
        together = patching.write(one, {"": half})[""]
        alone = [patching.write(patching.some(one, [row]), {"": half})[""][0] for row in range(3)]
        assert together == alone
    english = patching.hear(several, sounds, [site])[site]
    assert english.plain[1] == here.plain[1] and english.plain != here.plain


# ------------------------------------------------------------------------------------------------ word errors


def test_diacritics_are_letters_of_other_languages(demo):
    english, german = text.normalisers(demo, ["en", "de"])
    assert english("Äpfel, im Über-Café") == "apfel im uber cafe"
    assert german("Äpfel, im Über-Café").split() == ["äpfel", "im", "über", "café"]
    assert text.normaliser(demo, "ja")("今日は。").split() == ["今", "日", "は"], "letters where no spaces part words"
    scorer = scoring.Scorer(["the colour", "Äpfel"], [english, german])
    assert scorer.count(["The color", "apfel"]).errors.tolist() == [0, 1]
    assert scorer.at([1]).count(["äpfel!"]).errors.tolist() == [0]
    assert text.errors(["the colour", "Äpfel"], ["color", "apfel"], [english, german]).errors.tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------ what is said


def test_what_contradicts_the_language_is_named(several, demo):
    run = profiles.choose("demo")
    german = pd.DataFrame({"corpus": "c", "language": ["de"] * 3 + [""] * 2 + ["ga-IE"], "text": "a"})
    said = sanity_checks.language_cautions(run, demo, german)
    assert len(said) == 1 and "English-only model, and 4 of 6 clips are in another language: German (de) 3" in said[0]
    said = sanity_checks.language_cautions(run, several, german)
    assert len(said) == 2 and "no token for the language of 1 of 6 clips: ga-ie 1" in said[0]
    assert "For 2 of 6 clips no language is recorded: they are decoded as English" in said[1]
    said = sanity_checks.language_cautions(profiles.replace(run, language="English"), several, german)
    assert len(said) == 1 and "records another one for 4 of 6 clips: German (de) 3, ga-ie 1" in said[0]
    assert not sanity_checks.language_cautions(run, demo, german.assign(language="en"))
    table = sanity_checks.decoded_languages(run, several, german).set_index("recorded")
    assert table.clips.to_dict() == {"not recorded": 2, "German (de)": 3, "ga-ie": 1}
    assert table.token["German (de)"] == "<|de|>" and table.normaliser["German (de)"] == "basic"
    assert set(sanity_checks.decoded_languages(run, demo, german).token) == {"none: English-only model"}


# ----------------------------------------------------------------------------------- one set of settings


@pytest.mark.parametrize("spoilt", ["no generation_config.json", "a tokenizer with a language"])
def test_transcripts_and_edits_have_the_same_settings(demo, sounds, tmp_path, spoilt):
    folder = shutil.copytree(WHISPER, tmp_path / "spoilt")
    if spoilt.startswith("no"):
        (folder / "generation_config.json").unlink()
    else:
        changed(folder, "tokenizer_config.json", language="english", task="transcribe")
    whisper, mels = whisper_model.load(str(folder), "cpu"), whisper_model.mel(demo, sounds)
    heard = patching.hear(whisper, sounds, ["encoder.1.resid"])["encoder.1.resid"]
    assert text.transcribe(whisper, mels) == patching.said(heard, heard.plain) == text.transcribe(demo, mels)
    assert text.prompt(whisper) == text.prompt(demo)


def test_without_a_generation_config_the_vocabulary_tells_whether_a_model_is_multilingual(several, monkeypatch):
    monkeypatch.setattr(several.whole, "generation_config", GenerationConfig())
    assert text.languages_of(several) == {}
    monkeypatch.setattr(several.config, "vocab_size", text.MULTILINGUAL)
    monkeypatch.setattr(several.tokenizer, "get_vocab", lambda: {"<|en|>": 562, "<|de|>": 563, "a": 1})
    assert text.languages_of(several) == {"en": 562, "de": 563}


def test_a_german_corpus_is_decoded_in_german(several, sounds, tmp_path, data, run_for):
    """From the corpus's column to the word errors; the profile's language is in the key of all that depends on it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, sound in enumerate(sounds):
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    rows = {"file_name": [f"{n}.wav" for n in range(3)], "text": ["Äpfel"] * 3, "locale": ["de", "en", ""]}
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    run = run_for(several.name, folder, sites=("encoder.*.resid", "decoder.*.resid"))
    cache.make(pipeline.clips(run, 0))
    told = cache.make(sanity_checks.transcripts(run, 0)).table("transcripts.csv")
    assert told.heard.tolist() == text.transcribe(several, whisper_model.mel(several, sounds), ["de", "en", "en"])
    assert set(told.detected) <= {"de", "en"} and told.p_detected.between(0.5, 1).all(), "of two languages"
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    shown = sanity_checks.decoded_languages(run, several, heard, told.assign(id=told.id.astype(str)))
    assert shown.clips.sum() == 3 and all(re.fullmatch(r"(de|en) \d(, (de|en) \d)?", one) for one in shown.detected)
    tokens = cache.make(pipeline.decoded(run, 0)).table("tokens.csv")
    assert tokens[tokens.position == 1].token_id.tolist() == [TOKENS[f"<|{one}|>"] for one in ("de", "en", "en")]
    german = profiles.replace(run, language="German")
    assert pipeline.clips(german, 0).key != pipeline.clips(run, 0).key
    assert pipeline.clips(german, 0).key == pipeline.clips(profiles.replace(run, language="de"), 0).key
    with pytest.raises(whisper_model.BadModel, match="has no token for Welsh"):
        welsh = profiles.replace(run, language="cy")
        cache.make(pipeline.clips(welsh, 0))
        cache.make(sanity_checks.transcripts(welsh, 0))


def test_of_a_language_that_the_model_lacks_no_word_is_scored_or_given(demo, sounds, tmp_path, data, run_for):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, sound in enumerate(sounds):
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    rows = {"file_name": [f"{n}.wav" for n in range(3)], "text": ["put six toys"] * 3, "language": ["de", "", "de"],
            "speaker": list("abc"), "split": ["train", "test", "validation"]}  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    run = run_for(WHISPER, folder, sites=("encoder.1.resid", "decoder.1.resid"), focus="encoder.1.resid")
    assert text.can_decode(demo, ["de", "en", "de"]).tolist() == [False, True, False]
    cache.make(pipeline.clips(run, 0))
    told = cache.make(sanity_checks.transcripts(run, 0)).table("transcripts.csv")
    assert told.words.tolist() == [0, 3, 0] and (told.said == "put six toys").all()
    decoded = cache.make(pipeline.decoded(run, 0))
    assert decoded.table("windows.csv")["clip"].tolist() == [1] and decoded.facts["clips_left_out"] == 2
    some = evaluation_clips.gathered(run, 0, ("encoder.1.resid",))
    assert some.clips.split.tolist() == ["test"] and some.left_out == 1


def test_prompts_are_on_the_cpu_and_of_one_length(several):
    found = text.prompts(several, ["de", "en", "de"])
    assert found.shape == (3, 4) and found.device.type == "cpu" and found.dtype == torch.long
