"""The page of a gallery: what is in it, that nothing in the data gets out of its place, and that a browser plays it."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import browser
import html5lib
import numpy as np
import pandas as pd
import pytest
import soundfile
from bs4 import BeautifulSoup
from conftest import hum
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from whisper_sae.data import clip_table
from whisper_sae.explorer import dashboard
from whisper_sae.explorer.dashboard import Example, Whole
from whisper_sae.report.template import TEMPLATE

NASTY = "</script><script>document.title='got out'</script><!--<script> & \"'` \u2028 ${x} ʃ"


def example(feature=3, clip="a", first=0.5, value=2.0, seconds=3.0, frames=21, seed=0, **given) -> Example:
    rng = np.random.default_rng(seed)
    trace = np.zeros(frames, dtype=np.float32)
    trace[frames // 2 - 2 : frames // 2 + 3] = [0.5, 1, 2, 1, -0.25]
    mel = gaussian_filter(rng.normal(size=(80, 2 * frames)), 2).astype(np.float32)
    told = {"kind": "loudest", "text": "one two three", "speaker": "v1"} | given
    return Example(feature, value=value, first=first, sound=hum(rng, 120, seconds=frames * 0.02), mel=mel, trace=trace,
                   clip=clip, seconds=seconds, **told)  # fmt: skip


WORDS = ((0.2, 0.6, "one"), (0.6, 0.9, "two"), (0.9, 1.4, "three"))

FEATURES = pd.DataFrame({
    "feature": [3, 11, 40], "label": ["likely /s/", NASTY, "unclear"], "by": ["draft", "note", "draft"],
    "rate": [0.01, 0.2, 0.0004], "phone": ["s", "ʃ", None], "f1": [0.5, 0.8, np.nan], "chance": [0.1, 0.2, np.nan],
    "flag": ["", "loudness", ""], "category": [None, "sound", None], "low": [-1.0, 0.0, 0.0], "high": [2.0, 2.0, 1.0],
    "histogram": [[1, 0, 9], [5, 2, 1], None], "correlates": [[("energy", -0.5)], None, None], "odd": [1.5, np.inf, 7],
    "phones": [[("s", 0.5), ("z", np.nan)], None, None],
})  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """Writes a page of three features, two of which share an excerpt, and gives its path and what it holds."""

    def write(features=FEATURES, examples=None, **how):
        some = [
            example(words=WORDS),
            example(11),
            example(11, clip=NASTY, first=-0.1, text=NASTY, words=((0, 1, NASTY),)),
        ]
        told = {"title": NASTY, "about": NASTY, "banner": NASTY, "aside": NASTY} | how
        path = tmp_path / "page" / "features.html"
        facts = dashboard.write(path, features, some if examples is None else examples, **told)
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        return path, json.loads(soup.find(id="data").string), facts

    return write


def test_the_page_holds_what_it_was_given(page):
    path, data, facts = page()
    assert facts == {"features": 3, "examples": 3, "excerpts": 2, "bytes": path.stat().st_size}
    assert [path.name for path in path.parent.iterdir()] == ["features.html"]
    first, second, third = data["features"]
    assert first["correlates"] == [["energy", -0.5]] and first["more"] == [["odd", 1.5]]
    assert first["phones"] == [["s", 0.5], ["z", None]]
    assert second["label"] == NASTY and second["f1"] == 0.8 and "more" not in second
    assert third == {"feature": 40, "label": "unclear", "by": "draft", "rate": 0.0004, "low": 0, "high": 1,
                     "more": [["odd", 7.0]]}  # fmt: skip
    one, (two, outside) = data["examples"]["3"][0], data["examples"]["11"]
    assert one["excerpt"] == two["excerpt"] != outside["excerpt"], "an excerpt is embedded once"
    assert data["clips"][data["excerpts"][outside["excerpt"]]["clip"]]["words"] == [[0, 1, NASTY]]
    steps = np.frombuffer(base64.b64decode(one["trace"]), np.int8)
    np.testing.assert_allclose(steps * one["most"] / 127, example().trace, atol=one["most"] / 127)


def test_sound_and_picture_are_those_of_the_example(page):
    _, data, _ = page()
    one = example()
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(data["excerpts"][0]["sound"])), dtype="float32")
    assert rate == 16_000 and len(sound) == len(one.sound) and 0.8 < np.abs(sound).max() < 1.2
    assert np.corrcoef(sound[800:-800], one.sound[800:-800])[0, 1] > 0.9, "the same moment, to the sample"
    image = Image.open(io.BytesIO(base64.b64decode(data["excerpts"][0]["picture"])))
    assert image.format == "WEBP" and image.size == (42, 80)
    mel = np.zeros((80, 42))
    mel[10, :] = mel[:, 5] = 1
    grey = np.asarray(Image.open(io.BytesIO(dashboard.picture(mel))).convert("L"), dtype=float)
    assert grey.mean(axis=1).argmax() == 69 and grey.mean(axis=0).argmax() == 5, "low at the bottom, loud is white"


def test_silence_is_not_raised():
    sound, _ = soundfile.read(io.BytesIO(dashboard.opus(np.zeros(3200))))
    assert np.abs(sound).max() < 1e-3
    dashboard.picture(np.zeros((80, 20)))


def test_nothing_gets_out_of_its_place(page):
    path, _, _ = page()
    text = path.read_text(encoding="utf-8")
    soup = BeautifulSoup(text, "html5lib")
    assert len(soup.find_all("script")) == 2 and soup.h1.get_text() == NASTY == soup.title.get_text()
    assert "<" not in soup.find(id="data").string
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    script = "".join((dashboard.TEMPLATE / name).read_text(encoding="utf-8") for name in ("drawing.js", "gallery.js"))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|\bhttps?://(?!www\.w3\.org)", script
    )


def test_the_page_is_valid_html(page):
    path, _, _ = page(title="a", about="b", banner="c", aside="d")
    html5lib.HTMLParser(strict=True).parse(path.read_text(encoding="utf-8"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_through(tmp_path_factory, label):
    path = tmp_path_factory.getbasetemp() / "any.html"
    dashboard.write(path, pd.DataFrame({"feature": [1], "label": [label]}), [], title="t")
    found = BeautifulSoup(path.read_bytes(), "html5lib", from_encoding="utf-8").find(id="data").string
    assert json.loads(found)["features"][0].get("label", "") == label


def test_what_cannot_be_shown_is_refused(page):
    with pytest.raises(ValueError, match="features: no column 'feature'; it has number"):
        page(pd.DataFrame({"number": [1]}))
    with pytest.raises(ValueError, match="features: 3 is there twice"):
        page(pd.concat([FEATURES, FEATURES[:1]]))
    with pytest.raises(ValueError, match="examples: there are some of feature 5, which the table has not got"):
        page(examples=[example(5)])
    with pytest.raises(ValueError, match="sound: 100 samples of a are not whole frames of 320"):
        page(examples=[example()._replace(sound=np.zeros(100))])
    with pytest.raises(ValueError, match="trace: 4 frames of a, whose sound has 21"):
        page(examples=[example()._replace(trace=np.zeros(4))])


DRAWN = """
const made = (name) => ({ name, children: [], given: {}, style: {}, append(...more) { this.children.push(...more); },
  setAttribute(key, value) { this.given[key] = value; }, addEventListener() {} });
globalThis.document = { createElement: made, createElementNS: (_, name) => made(name) };
"""
ASKED = """
const trace = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0], part = { first: 0.5, seconds: 0.2 };
const picture = curves(trace, false, part.seconds / HOP), line = picture.children.at(-1).given.d;
console.log(JSON.stringify({ view: picture.given.viewBox, line, said: described(trace, part, 0.54, 1, ""),
  cells: [0.029, 0.031, 0.049, 0.051].map(cell) }));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, to run what the page draws")
def test_a_cell_lies_about_the_moment_on_which_its_frame_is_centred():
    """Frame 2 of an excerpt is centred on 40 ms, so it is drawn from 30 to 50 ms: `speech.CENTRE` is 0."""
    assert clip_table.CENTRE == 0
    script = DRAWN + (TEMPLATE / "drawing.js").read_text(encoding="utf-8") + ASKED
    told = json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout)
    left, _, wide, _ = map(float, told["view"].split())
    edges = sorted({float(x) for x in re.findall(r"[ML]([\d.]+) ", told["line"])})
    assert wide == 10 and [round((edge - left) * 0.2 / wide, 6) for edge in edges] == [0.03, 0.05]
    assert told["cells"] == [1, 2, 2, 3], "what is played at a moment is the frame whose cell holds it"
    assert "from -0.01 s to 0.01 s around its peak" in told["said"]


def test_three_hundred_features_with_sound_stay_below_20_mb(tmp_path):
    """By four features with five excerpts of 2.02 s each, whose sound is noisier than speech."""
    some = [example(n, clip=f"{n}", first=i, frames=101, seed=5 * n + i) for n in range(4) for i in range(5)]
    held = dashboard.packed(some)
    sizes = [dashboard.write(tmp_path / "x.html", pd.DataFrame({"feature": range(n)}), examples, title="t")["bytes"]
             for n, examples in [(4, held), (4, [])]]  # fmt: skip
    assert sizes[1] + 75 * (sizes[0] - sizes[1]) < 20e6


# ------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_filters_sorts_and_plays(page, tmp_path, width):
    path, _, _ = page()
    drive = Path(__file__).with_name("drive_gallery.js").read_text(encoding="utf-8")
    with browser.tab(tmp_path) as tab:
        tab.open(path.as_uri(), width)
        told = tab.run(drive)
        assert not tab.said, tab.said
    assert told["first"] == [11, 3, 40] == told["byF1"], "what has no F1 comes last"
    assert told["byRate"] == [11, 3, 40] and told["rising"] == [40, 3, 11] and told["sorted"] == "ascending"
    assert (told["text"], told["phone"], told["flag"], told["by"]) == ([3], [11], [3, 40], [11])
    assert (told["f1"], told["most"], told["left"]) == ([11], [3, 40], "2 of 3 features")
    assert told["count"] == "3 of 3 features" and told["none"] == "No feature is like that."
    assert told["home"][0].startswith("Feature 11") and told["home"][1] == 1
    assert told["down"] == ["#f3", "3", "#f3"] and told["entered"] == "detail" and told["left_again"] == "#f3"
    assert (
        told["heading"] == NASTY
        and told["marked"] == ["two", NASTY]
        and told["outside"] == [f"{100 * 0.1 / 0.42:.4f}%"]
    )
    assert told["curves"] == ["up", "down"] and told["said"].split() == ["one", "<mark>two</mark>", "three"]
    assert "2 there, in “two”" in told["stage"] and "5 of 21 frames" in told["stage"]
    for seconds, peak in told["decoded"]:
        assert seconds == pytest.approx(0.42, abs=0.002) and 0.5 < peak < 1.5
    assert told["picture"] == [42, 80] and told["moved"] and told["playing"] == [1, "Pause example 1, loudest", ""]
    assert told["wide"] and told["title"] == NASTY


# -------------------------------------------------------------------------------------------------- whole clips


def whole(name="a", seconds=3.0) -> Whole:
    frames = round(seconds / 0.02)
    one = example(clip=name, first=0.0, frames=frames, text=name, words=WORDS)
    tracks = [np.where(np.arange(frames) == n, high, 0) for n, high in ((30, 2.0), (60, 1.0))]
    return Whole(one, ((3, 2.0, 1.0, 0.61, tracks[0]), (40, 1.0, 0.5, 1.21, tracks[1])))


def test_whole_clips_are_there_with_their_features(page):
    held = dashboard.packed([example(words=WORDS), example(11)], [whole(), whole(NASTY)])
    _, data, _ = page(examples=held)
    first, second = data["wholes"]
    assert data["clips"][second["part"]["clip"]]["name"] == NASTY and first["part"]["clip"] == 0, "a clip is told once"
    assert [(row["feature"], row["value"], row["share"], row["at"]) for row in first["found"]] == [
        (3, 2, 1, 0.61), (40, 1, 0.5, 1.21)
    ]  # fmt: skip
    trace = np.frombuffer(base64.b64decode(first["found"][1]["trace"]), np.int8)
    assert len(trace) == 150 and trace.argmax() == 60 and trace.max() == 127
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(first["part"]["sound"])))
    assert len(sound) == 48_000
    with pytest.raises(ValueError, match="clips: one has feature 40, which the table has not got"):
        page(FEATURES[:2], dashboard.packed([], [whole()]))


def test_there_are_no_more_whole_clips_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(dashboard, "ROOM", 30_000)
    held = dashboard.packed([], (whole(str(n)) for n in range(50)))
    assert 1 <= len(held["wholes"]) < 10
    size = sum(len(json.dumps(one)) for one in held["wholes"][:-1])
    assert size < 40_000


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_from_a_clip_to_a_feature_and_back_without_a_network(page, tmp_path, width):
    path, _, _ = page(examples=dashboard.packed([example(words=WORDS), example(11)], [whole(), whole(NASTY)]))
    with browser.tab(tmp_path) as tab:
        tab.open(path.as_uri(), width)
        tab.run("document.querySelector('.switch [data-of=clips]').click()")
        assert tab.run(
            "document.querySelector('.clips').offsetHeight > 0 && !document.querySelector('.rows').offsetHeight"
        )
        tab.run("document.querySelectorAll('.clips a')[1].click()")
        tab.until("document.querySelectorAll('.peak-row').length === 2")
        assert tab.run("document.querySelector('.detail h2').textContent") == NASTY
        tab.run("document.querySelectorAll('.look')[1].click()")
        assert tab.run("document.querySelector('.detail .example b').textContent") == "Feature 40"
        assert tab.run("document.querySelector('.said mark').textContent") == "three"
        tab.run("document.querySelector('.detail .player button').click()")
        tab.until("Number(document.querySelector('.detail .player input').value) > 0.05")
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        tab.run("document.querySelector('.leap').click()")
        tab.until("document.querySelector('.detail .which').textContent.startsWith('Feature 3')")
        tab.run("document.querySelector('.detail .from a').click()")
        tab.until("document.querySelector('.detail h2').textContent === 'a'")
        assert not tab.said, tab.said
