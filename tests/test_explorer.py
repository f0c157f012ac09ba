"""The explorer hears what the index heard, opens no port, and does in a real browser what a person asks of it."""

import base64
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import psutil
import pytest
import soundfile
import torch
from asked import NASTY, world
from conftest import hum
from scipy.sparse import csc_array
from talking import opened

from whisper_sae import cache
from whisper_sae.experiments import explore, feature_index, pipeline, sae_comparison
from whisper_sae.explorer import notebook_widget
from whisper_sae.report.template import TEMPLATE

SITE = "encoder.1.resid"
DEMO = Path(__file__).resolve().parents[1] / "data" / "demo" / "whisper"


@pytest.fixture
def made(corpus, run_for, data):
    """The demo's Whisper hears a few hums; dictionary and neurons have an index."""
    run = run_for(DEMO, corpus(voices=4, clips=3), tokens=2_000, expansion=2)
    for recipe in (pipeline.clips(run, 0), pipeline.activations(run, 0), sae_comparison.dictionary(run, 0, SITE)):
        cache.make(recipe)
    for of in ("dictionary", "neurons"):
        cache.make(feature_index.codes(run, 0, SITE, of))
    return run


def test_what_is_handed_over_is_heard_as_the_corpus_was_and_no_port_is_opened(made):
    here = psutil.Process()
    before = here.net_connections()
    widget = explore.explore(made)
    assert list(widget.asked) == ["dictionary", "neurons"]
    for of, asked in widget.asked.items():
        heard = asked.clips
        for clip in (0, 5):
            told = widget.answer({"ask": "upload", "source": of, "name": "x"}, Path(heard.path[clip]).read_bytes())
            one = {"source": of, "ask": "clip", "most": 100}
            mine, theirs = (widget.answer(one | {kind: n}) for kind, n in (("upload", told["upload"]), ("clip", clip)))
            peaks = [{row["feature"]: row["value"] for row in each["found"]} for each in (mine, theirs)]
            assert len(peaks[0].keys() & peaks[1].keys()) >= 0.95 * len(peaks[1])
            for feature in peaks[0].keys() & peaks[1].keys():
                assert peaks[0][feature] == pytest.approx(peaks[1][feature], rel=0.02, abs=0.02)
    for question in ("feature", "clip", "media", "compare", "clips", "change"):
        fields = {"feature": 1, "clip": 0, "scales": {"1": 2}, "a": {"clip": 0}, "b": {"clip": 1}}
        wanted = {"feature": "feature", "clip": "clip", "media": "clip", "compare": "a b", "change": "clip scales"}
        chosen = {name: fields[name] for name in wanted.get(question, "").split()}
        assert "error" not in widget.answer({"ask": question} | chosen)
    assert here.net_connections() == before, "a socket was opened"


def test_a_change_by_one_changes_nothing_and_silence_is_zero(made):
    asked = explore.questions(made, 0, SITE)
    top = asked.answer({"ask": "clip", "clip": 0})["found"]
    first, second = str(top[0]["feature"]), str(top[1]["feature"])
    told = asked.answer({"ask": "change", "clip": 0, "scales": {first: 1, second: 1.0}})
    assert told["edited"] == told["baseline"] and told["tracks"][int(first)][0] == told["tracks"][int(first)][1]
    told = asked.answer({"ask": "change", "clip": 0, "scales": {first: 0}, "start": 0.1, "end": 0.2, "control": True})
    before, after = np.array(told["tracks"][int(first)])
    inside = (np.arange(len(before)) * 0.02 + 0.01 >= 0.1) & (np.arange(len(before)) * 0.02 + 0.01 < 0.2)
    assert (after[inside] == 0).all() and np.array_equal(after[~inside], before[~inside]) and before.max() > 0
    assert len(told["control"]["features"]) == 1 and told["control"]["features"][0] != int(first)
    long = np.concatenate([asked.sounds.sound("clip", n, 0, 48_000) for n in range(12)])[: 12 * 16_000]
    told = asked.steer(long, {int(first): 0}, 7.0, 9.0)
    before, after = np.array(told["tracks"][int(first)])
    changed = np.flatnonzero(before != after)
    assert len(before) == 600 and len(changed) and changed.min() >= 350 and changed.max() < 450, "over two windows"


def test_a_control_has_the_scale_of_its_own_feature(monkeypatch):
    """The first feature has no match, so the only control is the second's."""
    codes = np.zeros((10, 3), dtype=np.float32)
    codes[:, 0], codes[:4, 1], codes[4:8, 2] = 100, 1, 1

    class Hearing:
        run = SimpleNamespace(language="")

        def ready(self):
            return None, SimpleNamespace(W_dec=torch.eye(3))

        def __call__(self, _sound):
            return csc_array(codes)

    steering, scaled = explore.Steering(Hearing()), []

    def told(_sound, scales, *_) -> dict:
        scaled.append(scales)
        return {"baseline": "a", "reconstructed": "a", "edited": str(scales), "tracks": {}}

    monkeypatch.setattr(steering, "_told", told)
    found = steering(np.zeros(3200), {0: 0.0, 1: 3.0}, control=True)["control"]
    assert scaled == [{0: 0.0, 1: 3.0}, {2: 3.0}] and found == {"features": [2], "of": [1], "text": "{2: 3.0}"}
    alone = steering(np.zeros(3200), {0: 0.0}, control=True)["control"]
    assert alone == {"features": [], "of": [], "text": "a"}


def test_what_is_not_made_says_what_makes_it(made):
    with pytest.raises(cache.NotMade, match="index of the random dictionary"):
        explore.explore(made, of="random dictionary")
    with pytest.raises(ValueError, match="feature: there is no 9999"):
        explore.explore(made, feature=9999)
    closed = explore.questions(made, 0, SITE, upload=False, change=False, clips=[0, 1], title="my layer")
    about = closed.answer({"ask": "about"})
    assert (about["can_upload"], about["can_change"], about["clips"], about["title"]) == (False, False, 2, "my layer")
    with pytest.raises(ValueError, match="which have no time"):
        explore.questions(made, 0, "decoder.0.resid")


# ----------------------------------------------------------------------------------------------- without a model


@pytest.fixture
def widget(tmp_path):
    return notebook_widget.Explorer(
        {"dictionary": world(tmp_path / "world"), "neurons": world(tmp_path / "other", signed=True)}
    )


def test_a_sound_comes_in_parts(widget):
    data = Path(widget.asked["dictionary"].clips.path[1]).read_bytes()
    cuts = [data[:9000], data[9000:20_000], data[20_000:]]
    for part, piece in enumerate(cuts):
        told = widget.answer({"ask": "upload", "name": "x", "upload": "a", "part": part, "parts": 3}, piece)
    assert told["seconds"] == pytest.approx(0.9)
    broken = {"ask": "upload", "name": "x", "upload": "b", "part": 1, "parts": 3}
    assert "broken off" in widget.answer(broken, b"x")["error"]
    begun = {"ask": "upload", "name": "x", "upload": "b", "part": 0, "parts": 3}
    assert widget.answer(begun, b"x") == {"upload": None}
    assert (
        "a part of more than" in widget.answer(broken, bytes(notebook_widget.CHUNK + 1))["error"] and widget.parts == {}
    )


@pytest.mark.parametrize("question", [None, 3, [], {}, {"ask": "about", "source": 3}, {"source": "/etc", "ask": "clip"},
                                      {"ask": "upload", "parts": math.nan, "upload": "x", "part": 0}])  # fmt: skip
def test_whatever_the_browser_says_there_is_an_answer(widget, question):
    json.dumps(widget.answer(question), allow_nan=False)


def test_a_file_of_notes_that_cannot_be_read_is_named(widget):
    path = widget.asked["dictionary"].notes.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[feature.3\n")
    assert widget.answer({"ask": "about"})["error"].startswith(f"{path}: not valid TOML: ")
    with pytest.raises(ValueError, match="not valid TOML"):
        widget._repr_mimebundle_()


def test_who_asks_is_never_left_waiting(widget, monkeypatch):
    sent = []
    monkeypatch.setattr(widget, "send", sent.append)
    widget._hear(widget, {"id": "a", "question": {"ask": "about"}}, [])
    widget.asked["dictionary"].steer = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        widget._hear(widget, {"id": "b", "question": {"ask": "change", "clip": 0, "scales": {"1": 2}}}, [])
    widget._hear(widget, "nonsense", [])
    assert [one["id"] for one in sent] == ["a", "b"] and "went wrong" in sent[1]["answer"]["error"]


def test_the_script_asks_no_host_and_writes_no_html(widget):
    text = widget._esm
    assert text == "".join((TEMPLATE / name).read_text(encoding="utf-8") for name in ("drawing.js", "explorer.js"))
    html = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\("
    hosts = r"fetch\(|\bimport\b|WebSocket|XMLHttp|EventSource|https?://(?!www\.w3\.org/2000/svg)"
    assert not re.search(f"{html}|{hosts}", text)


# -------------------------------------------------------------------------------------------------- in a browser

LOOK = "document.querySelector"


@pytest.fixture
def tab(tmp_path):
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with browser.tab(tmp_path, *flags) as one:
        yield one
        assert not one.said, one.said


def texts(tab, selector: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_feature_is_searched_and_heard_in_a_browser(tab, widget, tmp_path, width):
    asked = opened(tab, widget, tmp_path, width)
    assert asked[0]["question"] == {"ask": "about"}
    tab.write("[name=feature]", "0")
    tab.write("[name=low]", "12")
    tab.write("[name=high]", "14")
    tab.press("Enter", 13)
    tab.until("document.querySelectorAll('.panel:not([hidden]) .example').length === 3")
    assert texts(tab, ".example header .value") == ["14", "13", "12"]
    assert texts(tab, ".status") == ["3 of 3 clips within the range"]
    bars = tab.run("[...document.querySelectorAll('.peaks rect')].map((one) => one.classList.contains('left-out'))")
    assert sum(not out for out in bars) == 3 and len(bars) == 8, "the histogram shows what is chosen, and the rest pale"
    assert tab.run("document.title") == "a notebook" and NASTY in texts(tab, ".example .from")[1]
    assert NASTY in texts(tab, ".example .said")[1] and tab.run("document.querySelectorAll('.said script').length") == 0
    tab.until("document.querySelector('.example img[src]')")
    tab.click(".example .player button")
    tab.until("Number(document.querySelector('.player input').value) > 0.1")
    assert tab.run("document.querySelector('.cursor').style.left") != ""
    assert re.fullmatch(r"now \d+\.\d{4} · max 14\.0000 · min 0\.0000", texts(tab, ".example .now")[0])
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    tab.write("[name=feature]", "99")
    tab.run("document.querySelector('form.ask').noValidate = true")
    tab.press("Enter", 13)
    tab.until("document.querySelector('.status.wrong')")
    assert texts(tab, ".status") == ["feature: must be a whole number from 0 to 11, got 99"]


def test_from_a_clip_to_its_features_to_their_clips_and_back(tab, widget, tmp_path):
    opened(tab, widget, tmp_path, 1280)
    tab.run("document.querySelector('.example .foot button').click()")
    tab.until("document.querySelectorAll('.peak-row').length > 3")
    clip = texts(tab, ".panel:not([hidden]) h3")[0]
    tab.run("document.querySelectorAll('.look')[1].click()")
    number = texts(tab, ".peak-row.chosen .leap")[0]
    assert texts(tab, ".pair .example b")[0] == f"Feature {number}"
    tab.click(".peak-row.chosen .leap")
    tab.until(f"document.querySelector('.panel:not([hidden]) h3').textContent === 'Feature {number}'")
    assert tab.run("document.querySelector('[name=feature]').value") == number
    tab.click(".back")
    tab.until("document.querySelector('#here [role=tab][aria-selected=true]').dataset.tab === 'clip'")
    assert texts(tab, ".panel:not([hidden]) h3")[0] == clip
    change = "one.value = '1'; one.dispatchEvent(new Event('change'))"
    tab.run(f"(() => {{ const one = document.querySelector('.head select'); {change}; }})()")
    tab.until("document.querySelector('.example .down')")
    assert widget.asked["neurons"].index.signed, "raw neurons, both sides, the same way"


def test_a_sound_of_ones_own_by_file_and_by_microphone(tab, widget, tmp_path):
    asked = opened(tab, widget, tmp_path, 1280)
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "mine.wav", hum(rng, 150, seconds=0.9), 16_000)
    long = tmp_path / "long.wav"  # of more than one part
    soundfile.write(long, np.stack([hum(rng, 150, 48_000, seconds=9)] * 2, axis=1), 48_000, subtype="FLOAT")
    (tmp_path / "no.wav").write_bytes(b"<script>document.title='got out'</script>")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "eight.wav", np.zeros((1600, 8)), 16_000)
    tab.run("document.querySelector('[data-tab=clip]').click()")
    for name, why in [("no.wav", "not a sound file"), ("empty.wav", "the file is empty"), ("eight.wav", "8 channels")]:
        tab.choose_file("input[type=file]", tmp_path / name)
        tab.until(f"document.querySelector('.status.wrong')?.textContent.includes({why!r})")
        tab.run(
            "document.querySelector('input[type=file]').value = ''; document.querySelector('.status').textContent = ''"
        )
    tab.choose_file("input[type=file]", tmp_path / "mine.wav")
    tab.until("document.querySelectorAll('.peak-row').length > 3")
    assert texts(tab, ".panel:not([hidden]) h3") == ["mine.wav"]
    tab.choose_file("input[type=file]", long)
    tab.until("document.querySelector('.panel:not([hidden]) h3').textContent === 'long.wav'")
    parts = [one["question"]["part"] for one in asked if one["question"]["ask"] == "upload"]
    assert parts[-4:] == [0, 1, 2, 3]
    record = "[...document.querySelectorAll('button')].find((one) => /Record|Stop/.test(one.textContent)).click()"
    tab.run(record)
    tab.run("new Promise((done) => setTimeout(done, 1500))")
    tab.run(record)
    tab.until("document.querySelector('.preview audio')")
    tab.run("document.querySelector('.preview .main').click()")
    tab.until("document.querySelector('.panel:not([hidden]) h3').textContent === 'recording.webm'")
    recorded = max(widget.asked["dictionary"].sounds.uploaded.values(), key=lambda one: one.name == "recording.webm")
    assert 0.5 < len(recorded.sound) / 16_000 < 5 and np.abs(recorded.sound).max() > 1e-3
    out = tab.run("""(async () => { let kept = ""; const make = URL.createObjectURL; URL.createObjectURL = (blob) => {
        kept = blob; return make(blob); }; const save = [...document.querySelectorAll(".pair .foot button")].at(-1);
        HTMLAnchorElement.prototype.click = () => {}; save.click();
        for (let n = 0; n < 200 && !kept; n++) await new Promise((done) => setTimeout(done, 20));
        const data = new Uint8Array(await kept.arrayBuffer());
        return btoa(Array.from(data, (one) => String.fromCharCode(one)).join("")); })()""")
    saved, rate = soundfile.read(io.BytesIO(base64.b64decode(out)), dtype="float32")
    assert rate == 16_000 and np.allclose(saved, recorded.sound, atol=1 / 32_000), "what is saved is what was heard"


def test_sliders_give_three_transcripts_and_a_control(tab, widget, tmp_path):
    asked = opened(tab, widget, tmp_path, 1280)
    tab.run("document.querySelector('.example .foot button').click()")
    tab.until("document.querySelectorAll('.peak-row').length > 3")
    tab.click(".peak-row .small")
    tab.until("document.querySelector('.slider')")
    tab.run("document.querySelector('.slider input[type=range]').focus()")
    before = tab.run("document.querySelector('.slider input[type=number]').value")
    tab.press("End", 35)
    assert (before, tab.run("document.querySelector('.slider input[type=number]').value")) == ("0", "100")
    tab.press("Home", 36)
    assert tab.run("document.querySelector('.slider input[type=number]').value") == "-2"
    tab.write(".slider input[type=number]", "3.5")
    tab.write("[name=start]", "0.1")
    tab.press("Enter", 13)
    tab.until("document.querySelector('.texts')")
    (question,) = [one["question"] for one in asked if one["question"]["ask"] == "change"]
    assert list(question["scales"].values()) == [3.5] and question["start"] == 0.1 and question["control"] is False
    assert texts(tab, ".texts dt") == ["As it is", "Re-said by the dictionary", "Changed"]
    assert (
        texts(tab, ".texts ins")[:2] == [",", ","] and tab.run("document.querySelectorAll('.texts dd b').length") == 0
    )
    assert len(texts(tab, ".both .example")) == 2
    tab.run("[...document.querySelectorAll('[aria-label=\"Change features\"] button')].at(-1).click()")
    tab.until("document.querySelectorAll('.texts dt').length === 4")
    assert texts(tab, ".texts del") == ["three"] and texts(tab, ".texts dt")[3].startswith("Control: feature 7")
    tab.write(".slider input[type=number]", "101")
    form = "document.querySelector('[aria-label=\"Change features\"]')"
    tab.run(f"{form}.noValidate = true; {form}.querySelector('.main').click()")
    tab.until("document.querySelector('.status.wrong')?.textContent.includes('must be from -2 to 100, got 101')")


def test_a_note_is_written_and_two_groups_are_compared(tab, widget, tmp_path):
    opened(tab, widget, tmp_path, 1280)
    tab.run("document.querySelector('.note').open = true")
    tab.write("[name=description]", NASTY)
    tab.write("[name=confidence]", "0.8")
    tab.run("document.querySelector('.note-form select').value = 'phone'")
    tab.click(".note-form .main")
    tab.until("document.querySelector('.note-form .soft').textContent.startsWith('kept on')")
    (note,) = widget.asked["dictionary"].notes.notes().values()
    assert (note.description, note.category, note.confidence) == (NASTY, "phone", 0.8)
    tab.run("document.querySelector('form.ask .main').click()")
    tab.until("document.querySelector('.label.note')")
    assert texts(tab, ".which .label") == [NASTY] and tab.run("document.title") == "a notebook"
    tab.run("document.querySelector('[data-tab=compare]').click()")
    tab.run("document.querySelector('[aria-label=\"Compare two groups\"] .main').click()")
    tab.until("document.querySelector('.panel:not([hidden]) tbody tr')")
    assert texts(tab, ".panel:not([hidden]) h3") == ["female and male"]
    assert "2 and 2 speakers" in texts(tab, "caption")[0] and "no test" in texts(tab, "caption")[0]


def test_hands_on_the_keyboard_alone_and_a_dark_notebook(tab, widget, tmp_path):
    opened(tab, widget, tmp_path, 1280, ground="#111111")
    assert tab.run("document.querySelector('.whisper-explorer').classList.contains('dark')")
    tab.run("document.querySelector('[role=tab]').focus()")
    tab.press("ArrowRight", 39)
    tab.until("document.activeElement.dataset.tab === 'clip'")
    assert tab.run("document.activeElement.getAttribute('aria-selected')") == "true"
    outline = "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.matches(':focus-visible')"
    assert tab.run(outline) == "solidtrue"
    tab.press("Home", 36)
    seen = []
    for _ in range(30):
        tab.press("Tab", 9)
        one = "document.activeElement"
        seen.append(tab.run(f"{one}.name || {one}.getAttribute('aria-label') || {one}.textContent"))
    assert seen[:6] == ["feature", "low", "high", "most", "absolute", "Find clips"]
    assert any(name.startswith("Play clip") for name in seen) and any(name.startswith("Position in") for name in seen)
    nameless = """[...document.querySelectorAll("#here :is(button, input, select, textarea, [role=img])")]
        .filter((one) =>
        ![one.getAttribute("aria-label"), one.labels?.[0]?.textContent, one.textContent].some((name) => name?.trim()))
        .map((one) => one.outerHTML)"""
    assert tab.run(nameless) == [], "everything that can be reached has a name"
