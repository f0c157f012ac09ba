"""What readers meet: escaped, described, playable."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
from IPython.core.interactiveshell import InteractiveShell

from whisper_sae.report import results
from whisper_sae.viz import display


@pytest.fixture
def shown(monkeypatch):
    """The HTML that was displayed."""
    said = []
    monkeypatch.setattr(display, "display", lambda html: said.append(html.data))
    return said


def a_figure():
    fig, axis = plt.subplots()
    axis.plot([0, 1, 2])
    return fig


def test_a_figure_needs_words(shown):
    with pytest.raises(ValueError, match="alt: say the finding"):
        display.show(a_figure(), alt=" ", caption="x")
    display.show(a_figure(), alt="rises from 0 to 2", caption="a line")
    assert 'alt="rises from 0 to 2"' in shown[0] and "<figcaption>a line</figcaption>" in shown[0]


def test_after_skip_rest_a_notebook_does_nothing(shown, monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr(display, "get_ipython", lambda: shell)
    shell.run_cell("x = 1")
    display.skip_rest("No clip has a transcript.")
    assert shell.run_cell("%time\nx = 2\nraise ValueError").success and shell.run_cell("!touch y").success
    assert shell.user_ns["x"] == 1
    assert "No clip has a transcript. The rest of this page is left out." in shown[0]


def test_text_from_data_is_escaped(shown):
    hostile = "<script>alert(1)</script>\"'&"
    display.show(a_figure(), alt=hostile, caption=hostile)
    display.play(a_figure(), np.zeros(160, np.float32), 16_000, alt=hostile, caption=hostile)
    display.table(pd.DataFrame({hostile: [hostile]}), caption=hostile)
    display.say(hostile)
    assert len(shown) == 4 and not any("<script>alert" in html for html in shown)
    assert not any('alt="<' in html or '"\'&"' in html for html in shown)


def test_the_sound_is_the_clip(shown):
    sound = (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    display.play(a_figure(), sound, 16_000, alt="a tone", caption="press play")
    data = re.search(r"data:audio/flac;base64,([^\"]+)", shown[0])[1]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert rate == 16_000 and len(heard) == 8000
    np.testing.assert_allclose(heard, sound, atol=1e-4)


def test_the_cursor_knows_where_the_axis_lies(shown):
    fig, (wave, heat) = plt.subplots(2, 1, sharex=True)
    wave.plot([0, 4], [0, 1])
    heat.imshow(np.zeros((3, 4)), extent=(0, 4, 0, 1), aspect="auto")
    wave.set_xlim(0, 4)
    display.play(fig, np.zeros(160, np.float32), 16_000, alt="x", caption="y")
    left, right, start, end = map(float, re.search(r'\("clip-\w+",([\d.,]+)\)', shown[0])[1].split(","))
    box = wave.get_position()
    assert (left, right) == pytest.approx((box.x0, box.x1), abs=1e-4) and (start, end) == (0, 4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1234567, "1,234,567"),
        (0.123456, "0.123"),
        (0.00123456, "0.00123"),
        (12345.6, "12,346"),
        (2.0, "2.00"),
        (float("nan"), "–"),
        (None, "–"),
        (0.0, "0"),
        ("a", "a"),
        (np.int64(5), "5"),
        (np.float64(99.96), "100.0"),
    ],
)
def test_numbers(value, said):
    assert display.number(value) == said


def test_findings_round_trip(data):
    class Step:
        label, key = "activations", "abc123"

    table = pd.DataFrame({"a": [1, 2], "b": ["x", "ü,"]})
    results.save("02_training", "demo", "one\nline", tables={"t": table}, steps=[Step])
    found = results.load("demo", "02_training")
    assert found["headline"] == "one line" and found["steps"] == {"activations": "abc123"}
    again = pd.read_csv(results.folder("demo") / found["tables"][0])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    with pytest.raises(ValueError, match="cannot name a file"):
        results.save("02_training", "demo", "x", tables={"../x": table})
    assert results.load("demo", "09_none") is None


def test_voices_are_players_under_their_names(shown):
    tone, noise = 0.3 * np.sin(np.arange(800) / 9), np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    display.voices([("a <b>", tone), ("c", noise)], 16_000, caption='two "voices" & <no more>')
    assert re.findall(r"<p>(.*?)</p>", shown[0]) == ["a &lt;b&gt;", "c"]
    assert "<figcaption>two &quot;voices&quot; &amp; &lt;no more&gt;</figcaption>" in shown[0]
    sounds = re.findall(r'aria-label="([^"]+)" src="data:audio/flac;base64,([^"]+)"', shown[0])
    assert [name for name, _ in sounds] == ["a &lt;b&gt;", "c"]
    for (_, data), sound in zip(sounds, (tone, noise), strict=True):
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == 16_000
        np.testing.assert_allclose(heard, sound, atol=1e-4)


def test_cells_lie_about_the_moments_on_which_frames_are_centred():
    """A click at 0.4 s: the cell of encoder frame 20 holds it in its middle, and that of spectral frame 40."""
    mel, hidden = np.zeros((80, 100)), np.random.default_rng(0).normal(size=(50, 6))
    mel[:, 40] = 1
    fig = display.heard_and_seen(np.zeros(16_000), 16_000, mel, hidden, np.ones(50), seconds=1.0, site="x")
    _, picture, heat = fig.axes[:3]
    for axis, frame, count in ((picture, 40, 100), (heat, 20, 50)):
        left, right = axis.images[0].get_extent()[:2]
        assert left + (frame + 0.5) * (right - left) / count == pytest.approx(0.4)
        assert axis.get_xlim() == (0, 1)


def test_words_and_phones_stand_where_they_are_spoken():
    sound, mel = 0.1 * np.sin(np.arange(32_000) / 9), np.zeros((80, 200))
    told = pd.DataFrame({"start": [0.2, 0.3, 0.5, 0.9, 1.1], "end": [0.3, 0.5, 0.8, 1.1, 1.9], "phone": list("gUddE")})
    told = told.assign(ipa=list("gʊddɛ"), word=["good"] * 3 + ["day"] * 2, word_index=["0"] * 3 + ["1"] * 2)
    words = pd.DataFrame({"word": ["good", "day"], "start": [0.2, 0.9], "end": [0.8, 1.9]})
    fig = display.spoken(sound, 16_000, mel, told)
    wave, picture = fig.axes
    for axis, when, names in ((wave, words, words.word), (picture, told, told.ipa)):
        assert [text.get_text() for text in axis.texts] == names.tolist()
        places = np.array([text.get_position() for text in axis.texts])
        np.testing.assert_allclose(places[:, 0], (when.start + when.end) / 2)
        bottom, top = axis.get_ylim()
        assert (places[:, 1] > bottom).all() and (places[:, 1] < top).all()
        lines = [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1]
        assert lines == when.start.tolist()
    assert wave.get_xlim() == picture.get_xlim() == (0, 2)
    assert picture.images[0].get_extent()[:2] == [-0.005, 1.995], "as long as the sound, each column about its 10 ms"
    for axis, highest in ((wave, sound.max()), (picture, len(mel))):
        assert all(text.get_position()[1] > highest for text in axis.texts), "names hide no sound"
    assert wave.get_ylim()[0] < sound.min()
    plt.close(fig)


def test_curves_around_a_moment_can_be_told_apart_without_colour():
    names, time = ["stop", "fricative", "chance", "nasal", "vowel", "silence"], np.arange(-2, 3)
    fig = display.around({name: np.arange(5) + i for i, name in enumerate(names)}, time)
    (axis,) = fig.axes
    lines = {line.get_label(): line for line in axis.lines if line.get_label() in names}
    assert list(lines) == names == [text.get_text() for text in axis.get_legend().get_texts()]
    for i, line in enumerate(lines.values()):
        assert line.get_xdata().tolist() == time.tolist() and line.get_ydata().tolist() == (np.arange(5) + i).tolist()
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines.values()}) == len(names)
    greys = [name for name, line in lines.items() if line.get_color() == display.GREY]
    assert greys == ["chance"] and lines["chance"].get_linestyle() == ":"
    assert any(set(line.get_xdata()) == {0} for line in axis.lines), "the moment itself"
    plt.close(fig)


def test_rivals_are_levels_with_names():
    fig, heights = a_figure(), {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5}
    fig.axes[0].lines[0].set_label("ours")
    display.levels(fig, heights)
    ours, *levels = fig.axes[0].lines
    assert ours.get_color() != display.GREY and {line.get_color() for line in levels} == {display.GREY}
    assert {line.get_label(): line.get_ydata()[0] for line in levels} == heights
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["ours", *heights]
    assert len({str(line._dash_pattern) for line in levels[:4]}) == 4
    plt.close(fig)


def test_an_interval_in_prose():
    assert display.between(0.1634, 0.244) == "16.3% to 24.4%"
    assert display.between(float("nan"), float("nan")) == "too few for an interval"


def test_a_front_can_be_read_without_colour():
    variants = ["batchtopk", "topk", "multitopk", "matryoshka", "jumprelu", "relu", "tied"]
    rows = [(v, 4.0 * 2**i, 0.2 / (i + 1), i == 1) for v in variants for i in range(3)]
    points = pd.DataFrame(rows, columns=["variant", "l0", "fvu", "front"])
    points = points.assign(fvu_low=points.fvu * 0.9, fvu_high=points.fvu * 1.1)
    fig = display.pareto(points, pd.DataFrame({"l0": [1, 8], "fvu": [0.9, 0.4]}), "principal directions")
    (axis,) = fig.axes
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["principal directions", "the front", *variants]
    beat, front, *_ = axis.lines
    assert beat.get_color() == display.GREY and front.get_color() == display.INK
    np.testing.assert_allclose(front.get_ydata(), 0.1)
    drawn = [container.lines[0] for container in axis.containers]
    assert len({line.get_marker() for line in drawn}) == len({line.get_color() for line in drawn}) == 7
    np.testing.assert_allclose(drawn[0].get_xdata(orig=False), [4, 8, 16])
    plt.close(fig)


def test_a_front_without_intervals_is_drawn(shown):
    points = pd.DataFrame({"variant": ["topk"], "l0": [4.0], "fvu": [0.2], "front": [True]})
    points = points.assign(fvu_low=np.nan, fvu_high=np.nan)
    fig = display.pareto(points, pd.DataFrame({"l0": [4], "fvu": [0.3]}), "principal directions")
    display.show(fig, alt="one point", caption="x")
    assert "<img" in shown[0]
