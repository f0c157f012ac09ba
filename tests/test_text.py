"""Text goes in and out as plain transformers and jiwer have it, and every token that is given is told."""

import shutil
from dataclasses import replace

import jiwer
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from coders import agreement
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, sanity_checks
from whisper_sae.model import scoring, text, whisper_model

WHISPER, CORPUS = profiles.DEMO / "whisper", profiles.DEMO / "corpus"
PROMPT = ["<|startoftranscript|>", "<|notimestamps|>"]


@pytest.fixture(scope="module")
def clips() -> pd.DataFrame:
    """Three sentences of different speakers, and a sound that is none."""
    found = clip_table.read(CORPUS)
    return pd.concat([found[found.kind == "speech"].iloc[[0, 111, 377]], found[found.kind == "sound"].head(1)])


@pytest.fixture(scope="module")
def words() -> list[str]:
    return sorted(set(pd.read_csv(CORPUS / "words.csv").word))


def given_to(whisper, said: str) -> list[str]:
    """The strings of the tokens that one text is given as."""
    return text.strings(whisper, *text.given(whisper, [said])).token.tolist()


# ----------------------------------------------------------------------------------------- what is given


def test_words_are_numbered_in_order_and_joined_tokens_are_the_text(demo, words):
    end = demo.tokenizer.eos_token_id

    @settings(max_examples=20)
    @given(st.lists(st.lists(st.sampled_from(words), max_size=9), min_size=1, max_size=4))
    def check(sentences):
        ids, lengths = text.given(demo, [" ".join(sentence) for sentence in sentences])
        told = text.strings(demo, ids, lengths)
        assert ids.shape == (len(sentences), lengths.max()) and set(told.row) == set(range(len(sentences)))
        for row, sentence in enumerate(sentences):
            mine = told[told.row == row]
            assert mine.position.tolist() == list(range(lengths[row]))
            assert mine.token_id.tolist() == ids[row, : lengths[row]].tolist()
            assert end not in mine.token_id.tolist() and set(ids[row, lengths[row] :].tolist()) <= {end}
            assert mine.token[:2].tolist() == PROMPT and mine.word[:2].tolist() == [-1, -1]
            spoken = mine[2:]
            assert "".join(spoken.token) == "".join(f" {word}" for word in sentence)
            assert spoken.word.is_monotonic_increasing
            joined = spoken.groupby("word").token.agg("".join).str.strip()
            assert joined.to_dict() == dict(enumerate(sentence))

    check()


def test_what_whisper_writes_by_itself_is_what_it_is_given(demo, clips):
    """The tokens of a text are those that the model was trained to write: with a space before each word."""
    mels = whisper_model.mel(demo, [clip_table.samples(path) for path in clips.path[:3]])
    wrote = demo.whole.generate(mels, attention_mask=torch.ones(len(mels), mels.shape[-1], dtype=torch.long))
    ids, lengths = text.given(demo, text.transcribe(demo, mels))
    same = [
        ids[row, 2 : lengths[row]].tolist() == [token for token in wrote[row].tolist() if token < 560]
        for row in range(len(mels))
    ]
    assert sum(same) >= 2, "a model may spell one sentence its own way"


def test_the_first_word_begins_with_a_space_too(demo, tmp_path):
    """In OpenAI's tokenizers "the" and " the" are two tokens, and Whisper writes the second one."""
    folder = shutil.copytree(WHISPER, tmp_path / "plain")
    for file in folder.glob("tokenizer*.json"):
        file.write_text(file.read_text().replace('"add_prefix_space": true', '"add_prefix_space": false'))
    plain = whisper_model.load(str(folder), "cpu")
    assert plain.tokenizer.decode(plain.tokenizer("the garden").input_ids, skip_special_tokens=True) == "the garden"
    assert given_to(plain, "the garden") == given_to(demo, "the garden")
    assert given_to(plain, "the garden")[2] == " the"


def test_capitals_are_written_small(demo):
    assert given_to(demo, "THE STRANGER HID") == given_to(demo, "the stranger hid")
    assert "".join(given_to(demo, "The Stranger hid")[2:]) == " The Stranger hid"


def test_white_space_is_one_space(demo):
    assert given_to(demo, "  the\tgreen \n garden ") == given_to(demo, "the green garden")


@pytest.mark.parametrize("nothing", ["", "  "])
def test_an_empty_text_is_only_the_prompt(demo, nothing):
    assert given_to(demo, nothing) == PROMPT
    ids, lengths = text.given(demo, ["the garden", nothing])
    told = text.strings(demo, ids, lengths)
    assert lengths.tolist() == [(told.row == 0).sum(), 2]
    assert told[told.row == 1].word.tolist() == [-1, -1]


# -------------------------------------------------------------------------------------- what is written


def test_transcripts_are_those_of_plain_transformers(demo, clips):
    processor = WhisperProcessor.from_pretrained(WHISPER)
    plain = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32).eval()
    sounds = [clip_table.samples(path) for path in clips.path]

    def theirs(some):
        heard = processor(some, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        said = plain.generate(heard.input_features, attention_mask=heard.attention_mask)
        return [one.strip() for one in processor.batch_decode(said, skip_special_tokens=True)]

    batch = text.transcribe(demo, whisper_model.mel(demo, sounds))
    assert batch == theirs(sounds)
    alone = [text.transcribe(demo, whisper_model.mel(demo, [sound])) for sound in sounds]
    assert alone == [theirs([sound]) for sound in sounds]
    assert agreement([[one] for one in batch], alone) >= 0.9, "in a batch and alone"
    assert len(set(batch)) > 2, "or it would say the same of everything"


def test_recorded_digits_are_heard(shared):
    """OpenAI's tiny.en: three speakers, five digits each, joined with a tenth of a second between."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    digits = clip_table.read(shared / "speech" / "free-spoken-digits")
    pause, said, sounds = np.zeros(1600, np.float32), [], []
    for turn, speaker in enumerate(sorted(digits.speaker.unique())[:3]):
        some = digits[digits.speaker == speaker].sample(5, random_state=turn)
        said.append(" ".join(some.text))
        sounds.append(np.concatenate([part for path in some.path for part in (clip_table.samples(path), pause)]))
    heard = text.transcribe(whisper, whisper_model.mel(whisper, sounds))
    wrong = text.errors(said, heard, text.normaliser(whisper))
    assert wrong.words.sum() == 15
    assert wrong.errors.sum() / 15 < 0.3, heard


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("said", "heard", "counts"),  # words, substitutions, deletions, insertions
    [
        ("a b c", "a b c", (3, 0, 0, 0)),
        ("a b c", "a x c", (3, 1, 0, 0)),
        ("a b c", "a c", (3, 0, 1, 0)),
        ("a b c", "a b x c", (3, 0, 0, 1)),
        ("a b c d", "x a b d", (4, 0, 1, 1)),
        ("a b c", "", (3, 0, 3, 0)),
        ("", "x y", (0, 0, 0, 2)),
        (" ", "", (0, 0, 0, 0)),
    ],
)
def test_errors_by_hand(said, heard, counts):
    row = text.errors([said], [heard]).iloc[0]
    assert tuple(row[["words", "substitutions", "deletions", "insertions"]]) == counts
    assert row.errors == sum(counts[1:])


def sentences(least=0):
    return st.lists(st.sampled_from("abcd"), min_size=least, max_size=6).map(" ".join)


@given(st.lists(st.tuples(sentences(least=1), sentences()), min_size=1, max_size=5))
def test_the_rate_is_jiwers(pairs):
    said, heard = map(list, zip(*pairs, strict=True))
    found = text.errors(said, heard)
    assert found.errors.sum() / found.words.sum() == pytest.approx(jiwer.wer(said, heard))


def test_the_prompt_is_no_word_where_the_tokenizer_does_not_call_it_special(shared):
    real = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    told = text.strings(real, *text.given(real, ["four three two"]))
    assert told.word.tolist() == [-1, -1, 0, 1, 2]


@given(sentences(), sentences())
def test_no_error_means_the_same_words(said, heard):
    assert (text.errors([said], [heard]).errors[0] == 0) == (said == heard)


def test_both_sides_are_brought_to_one_spelling(demo):
    said, heard = ["Mr. Green can't come, um, today!", "Hmm!"], ["mister green can not come today", ""]
    assert text.errors(said, heard).errors.tolist() != [0, 0]
    found = text.errors(said, heard, text.normaliser(demo))
    assert found.errors.tolist() == [0, 0] and found.words.tolist() == [6, 0]


def test_typographic_apostrophes_are_apostrophes(demo):
    said, heard = ["don't", "O'Brien's"], ["don’t", "O’Brien’s"]
    assert text.errors(said, heard, text.normaliser(demo)).errors.tolist() == [0, 0]
    (one, _), (other, _) = (text.given(demo, texts) for texts in (said, heard))
    assert one.tolist() == other.tolist()


def test_word_errors_are_summed_before_they_are_divided():
    wrote = pd.DataFrame(
        [
            ("1", "ada", "female", 5, 1),
            ("2", "ada", "female", 10, 0),
            ("3", "bob", "male", 2, 2),
            ("4", "eve", "female", 3, 0),
            ("5", "", "", 4, 2),
            ("6", "", "", 1, 0),
            ("7", "bob", "male", 0, 9),  # nothing was said
        ],
        columns=["id", "speaker", "gender", "words", "errors"],
    )
    found = sanity_checks.word_errors(wrote).iloc[0]
    assert (found.group, found.speakers, found.clips, found.words) == ("all", 5, 6, 25)
    assert found["WER"] == pytest.approx(5 / 25)
    assert np.isnan([found.WER_low, found.WER_high]).all(), "five speakers"
    by = sanity_checks.word_errors(wrote, "gender").set_index("group")
    assert by.WER.to_dict() == pytest.approx({"female": 1 / 18, "male": 1.0})
    assert by.speakers.to_dict() == {"female": 2, "male": 1} and np.isnan(by.WER_low["male"])


# ------------------------------------------------------------------------------------------- the results


def test_transcripts_say_what_was_said_and_heard(demo, clips, tmp_path, data, run_for):
    """One clip is longer than a window: its windows are written one by one and joined."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    sounds = {f"{i}.wav": clip_table.samples(path) for i, path in enumerate(clips.path)}
    sounds["long.wav"] = np.concatenate(
        [np.r_[sounds["0.wav"], np.zeros(128_000, np.float32)][:128_000], sounds["1.wav"]]
    )
    for name, sound in sounds.items():
        soundfile.write(folder / name, sound, 16_000, subtype="FLOAT")
    said = [*clips.text, f"{clips.text.iloc[0]} {clips.text.iloc[1]}"]
    pd.DataFrame({"file_name": list(sounds), "text": said}).to_csv(folder / "metadata.csv", index=False)
    run = run_for(WHISPER, folder)
    table = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    step = cache.make(sanity_checks.transcripts(run, 0))
    found = step.table("transcripts.csv", dtype={"id": str})
    assert found.id.tolist() == table.id.tolist() == ["0", "1", "2", "3", "long"]
    assert found.said.tolist() == table.text.tolist() == said
    alone = [text.transcribe(demo, whisper_model.mel(demo, [sound]))[0] for sound in [*sounds.values()][:4]]
    assert found.heard.tolist() == [*alone, f"{alone[0]} {alone[1]}"]
    again = text.errors(said, found.heard.tolist(), text.normaliser(demo))
    pd.testing.assert_frame_equal(found[again.columns], again)
    assert step.facts["clips"] == 5 and step.facts["words"] == again.words.sum() > 20


# -------------------------------------------------------------------------------------- what cannot be done


# ------------------------------------------------------------------------------------------------- digits


SPELT = [
    ("eight oh five", True), ("8 0 5", True), ("805", True), ("double five one", True), ("s w 1 a", True),
    ("Seven.", True), ("seven sisters", False), ("a", False), ("", False), ("ten", False), ("call me at five", False),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "spelt"), SPELT)
def test_strings_of_digits_are_known(reference, spelt):
    assert text.is_digits(reference) is spelt


@pytest.mark.parametrize(
    ("reference", "transcript", "words", "wrong"),
    [
        ("eight one one two zero", "81120.", 5, 0),
        ("eight one one two zero", "8-1-1-2-0", 5, 0),
        ("eight one one two zero", "Eight, one, one, two, oh.", 5, 0),
        ("eight one one two zero", "8 11 20", 5, 0),
        ("eight one one two zero", "8-1-2-0", 5, 1),
        ("one", "1", 1, 0),
        ("one", "won", 1, 1),
        ("seven", "77", 1, 1),
        ("he said eight one", "he said 81", 3, 0),  # no string of digits: numbers are joined, as OpenAI does
    ],
)
def test_digits_are_compared_one_by_one(demo, reference, transcript, words, wrong):
    found = text.errors([reference], [transcript], text.normaliser(demo)).iloc[0]
    assert (found.words, found.errors) == (words, wrong)
    counted = scoring.Scorer([reference], text.normaliser(demo)).count([transcript]).iloc[0]
    assert (counted.words, counted.errors) == (words, wrong)


def test_spoken_digits_of_recordings_have_a_rate(shared):
    """With the digits joined to one number, these transcripts had 9 errors in 4 words."""
    digits = clip_table.read(shared / "speech" / "duke-alphanumeric")
    digits = digits[digits.text != ""].head(4)
    whisper = whisper_model.load(str(shared / "whisper-tiny.en"), "cpu")
    wrote = text.transcribe(whisper, whisper_model.mel(whisper, [clip_table.samples(path) for path in digits.path]))
    found = text.errors(digits.text.tolist(), wrote, text.normaliser(whisper))
    assert found.words.sum() > 35 and found.errors.sum() / found.words.sum() < 0.2, wrote


# ----------------------------------------------------------------------------------------------- spelling


def test_british_spellings_are_no_errors_without_a_normalizer_json(demo):
    assert not demo.tokenizer.english_spelling_normalizer, "the demo's folder has none"
    found = text.errors(
        ["the colour of aluminium organised"], ["the color of aluminum organized"], text.normaliser(demo)
    )
    assert found.errors.tolist() == [0]
    assert len(text.english_spellings()) == 1739


def test_without_a_tokenizer_no_text_is_read_or_written(loaded):
    mels = whisper_model.mel(loaded, [np.zeros(16_000, np.float32)])
    for ask in (
        lambda: text.given(loaded, ["a"]),
        lambda: text.strings(loaded, torch.tensor([[1]]), np.array([1])),
        lambda: text.transcribe(loaded, mels),
        lambda: text.normaliser(loaded),
    ):
        with pytest.raises(whisper_model.BadModel, match=r"no tokenizer\.json here, so no text") as said:
            ask()
        assert "\n" not in str(said.value) and loaded.name in str(said.value)


def test_without_a_decoder_nothing_is_written(loaded):
    deaf = replace(loaded, decoder=None, whole=None)
    with pytest.raises(
        whisper_model.BadModel, match="only encoder weights here, so no decoder sites and no transcripts"
    ):
        text.transcribe(deaf, whisper_model.mel(deaf, [np.zeros(16_000, np.float32)]))
