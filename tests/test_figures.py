"""What readers meet: escaped, described, playable."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile

from whisper_sae import figures, findings


@pytest.fixture
def shown(monkeypatch):
    """The HTML that was displayed."""
    said = []
    monkeypatch.setattr(figures, "display", lambda html: said.append(html.data))
    return said


def a_figure():
    fig, axis = plt.subplots()
    axis.plot([0, 1, 2])
    return fig


def test_a_figure_needs_words(shown):
    with pytest.raises(ValueError, match="alt: say the finding"):
        figures.show(a_figure(), alt=" ", caption="x")
    figures.show(a_figure(), alt="rises from 0 to 2", caption="a line")
    assert 'alt="rises from 0 to 2"' in shown[0] and "<figcaption>a line</figcaption>" in shown[0]


def test_text_from_data_is_escaped(shown):
    hostile = "<script>alert(1)</script>\"'&"
    figures.show(a_figure(), alt=hostile, caption=hostile)
    figures.play(a_figure(), np.zeros(160, np.float32), 16_000, alt=hostile, caption=hostile)
    figures.table(pd.DataFrame({hostile: [hostile]}), caption=hostile)
    figures.say(hostile)
    assert len(shown) == 4 and not any("<script>alert" in html for html in shown)
    assert not any('alt="<' in html or '"\'&"' in html for html in shown)


def test_the_sound_is_the_clip(shown):
    sound = (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    figures.play(a_figure(), sound, 16_000, alt="a tone", caption="press play")
    data = re.search(r"data:audio/flac;base64,([^\"]+)", shown[0])[1]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert rate == 16_000 and len(heard) == 8000
    np.testing.assert_allclose(heard, sound, atol=1e-4)


def test_the_cursor_knows_where_the_axis_lies(shown):
    fig, (wave, heat) = plt.subplots(2, 1, sharex=True)
    wave.plot([0, 4], [0, 1])
    heat.imshow(np.zeros((3, 4)), extent=(0, 4, 0, 1), aspect="auto")
    wave.set_xlim(0, 4)
    figures.play(fig, np.zeros(160, np.float32), 16_000, alt="x", caption="y")
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
    assert figures.number(value) == said


def test_findings_round_trip(data):
    class Step:
        label, key = "activations", "abc123"

    table = pd.DataFrame({"a": [1, 2], "b": ["x", "ü,"]})
    findings.save("02_training", "demo", "one\nline", tables={"t": table}, steps=[Step])
    found = findings.load("demo", "02_training")
    assert found["headline"] == "one line" and found["steps"] == {"activations": "abc123"}
    again = pd.read_csv(findings.folder("demo") / found["tables"][0])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    with pytest.raises(ValueError, match="cannot name a file"):
        findings.save("02_training", "demo", "x", tables={"../x": table})
    assert findings.load("demo", "09_none") is None
