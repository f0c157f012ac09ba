"""What a page without a kernel shows of the explorer: text that stays text, and sound that can be heard."""

import base64
import io
import re

import nbformat.v4 as book
import numpy as np
import soundfile
from asked import NASTY, world
from bs4 import BeautifulSoup

from whisper_sae.explorer import notebook_widget
from whisper_sae.report import readable


def test_a_rendered_notebook_shows_what_it_can(tmp_path):
    widget = notebook_widget.Explorer({"dictionary": world(tmp_path / "world")}, feature=0)
    data, _ = widget._repr_mimebundle_()
    assert readable.WIDGET in data
    soup = BeautifulSoup(data["text/html"], "html.parser")
    assert len(soup.find_all("audio")) == notebook_widget.STILLS == len(soup.find_all("mark"))
    assert not soup.find_all("script") and NASTY in soup.get_text() and "feature 0" in soup.get_text()
    assert not re.search(r"https?://", data["text/html"])
    frames = [float(one) for one in soup.svg["viewbox"].split()]
    assert frames[:3:2] == [0.5, 52], "frame i is centred on i · 20 ms, so half of the first one's cell is to be seen"
    sound = base64.b64decode(soup.audio["src"].split(",")[1])
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate in (16_000, 48_000) and abs(len(samples) / rate - 52 * 0.02) < 0.1 and np.abs(samples).max() > 0.3
    cell = book.new_code_cell("explore()", outputs=[book.new_output("display_data", data=data)])
    (shown,) = readable.prepared(book.new_notebook(cells=[cell])).cells
    (output,) = shown.outputs
    assert readable.WIDGET not in output.data and output.data["text/html"] == data["text/html"]
    bare = book.new_code_cell("x", outputs=[book.new_output("display_data", data={readable.WIDGET: {}})])
    assert readable.prepared(book.new_notebook(cells=[bare])).cells[0].outputs == []
