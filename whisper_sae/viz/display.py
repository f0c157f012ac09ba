"""Figures, tables and sounds as readers of a page meet them: with words for those who cannot see or hear.

Every figure says three different things: a title, what it shows; a caption, how to read it; an `alt`, the finding
and its range. What these functions display looks the same in JupyterLab and in the rendered report.
"""

import base64
import hashlib
import html
import io
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

BLUE, ORANGE, INK, GREY = "#0072B2", "#E69F00", "#222222", "#767676"
"""Two colours for two groups (circles and triangles), ink for text, grey for chance and for what is not there."""

MAGNITUDE, DIFFERENCE = "cividis", "RdBu_r"
"""Colour maps: how much, and how much more or less than 0."""


def use_style() -> None:
    """Quiet axes, readable sizes, inks that survive grey printing."""
    plt.rcParams.update({
        "figure.figsize": (7.2, 3.6), "figure.dpi": 110, "figure.constrained_layout.use": True,
        "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK,
        "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, INK, GREY]), "image.cmap": MAGNITUDE,
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------- showing


def show(fig: Figure, *, alt: str, caption: str) -> None:
    """Display a figure with its caption, and with words for those who cannot see it."""
    display(HTML(f'<figure class="plot">{_image(fig, alt)}<figcaption>{html.escape(caption)}</figcaption></figure>'))


def play(fig: Figure, sound: np.ndarray, rate: int, *, alt: str, caption: str) -> None:
    """Display a figure whose x axes are seconds, with its sound under it and a cursor that runs over it.

    `sound` is (sample,), and second 0 of the figure is its first sample. A click on the figure goes to that time.
    """
    picture = _image(fig, alt)  # draws, so that the axes have their place
    box, (left, right) = fig.axes[0].get_position(), fig.axes[0].get_xlim()
    name = "clip-" + hashlib.sha256((picture + caption).encode()).hexdigest()[:10]
    display(HTML(
        f'<figure class="clip" id="{name}"><div class="stage" style="position:relative">{picture}'
        '<div class="cursor" style="position:absolute;top:0;bottom:0;width:2px;background:#222;left:0;'
        f'pointer-events:none" hidden></div></div>{_player(sound, rate, caption)}'
        f"<figcaption>{html.escape(caption)}</figcaption><script>{_CURSOR}"
        f'("{name}",{box.x0:.5f},{box.x1:.5f},{left:.4f},{right:.4f})</script></figure>'
    ))  # fmt: skip


def voices(sounds: list[tuple[str, np.ndarray]], rate: int, *, caption: str) -> None:
    """Display sounds side by side, each a player under its label; (label, (sample,)) pairs."""
    players = "".join(
        f'<div class="voice"><p>{html.escape(label)}</p>{_player(sound, rate, label)}</div>' for label, sound in sounds
    )
    display(HTML(
        '<figure class="voices"><div style="display:grid;gap:.8rem;'
        f'grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))">{players}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    ))  # fmt: skip


def table(frame: pd.DataFrame, *, caption: str, digits: int = 3) -> None:
    """Display a data frame: numbers to the right, at most `digits` significant figures, text escaped."""
    head = "".join(f'<th scope="col"{_side(frame[name])}>{html.escape(str(name))}</th>' for name in frame)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_side(frame[name])}>{html.escape(number(row[name], digits))}</td>" for name in frame)
        + "</tr>"
        for row in frame.to_dict("records")
    )
    display(HTML(
        f'<figure class="table"><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    ))  # fmt: skip


def say(text: str) -> None:
    """Display a sentence whose numbers were computed: what prose may say of a result."""
    display(HTML(f'<p class="reading">{html.escape(text)}</p>'))


def skip_rest(reason: str) -> None:
    """Display why nothing further can be asked of a corpus, and let all later cells of the notebook do nothing."""
    say(f"{reason} The rest of this page is left out.")
    get_ipython().input_transformers_cleanup.append(lambda _lines: ["\n"])


def number(value, digits: int = 3) -> str:
    """A number as a reader wants it: thousands apart, at most `digits` significant figures, no exponent in sight."""
    if isinstance(value, str | bool):
        return str(value)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if not isinstance(value, float | np.floating):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def between(low: float, high: float, form: str = ".1%") -> str:
    """A 95 % interval as prose has it: "16.3% to 24.4%"; "too few for an interval" where it is NaN."""
    return "too few for an interval" if math.isnan(low) or math.isnan(high) else f"{low:{form}} to {high:{form}}"


# ------------------------------------------------------------------------------------------------- drawing


def _centred(seconds: float, count: int) -> tuple[float, float]:
    """From where to where cells are drawn that lie `count` in `seconds`, the first centred on 0: frames of Whisper's
    encoder and of its spectrogram are (`speech.CENTRE`)."""
    half = seconds / count / 2
    return -half, seconds - half


def heard_and_seen(sound: np.ndarray, rate: int, mel: np.ndarray, hidden: np.ndarray, kinds: np.ndarray, *,
                   seconds: float, site: str) -> Figure:  # fmt: skip
    """One clip on one time axis: waveform, log-mel spectrogram, and what a site says, one row a neuron.

    `mel` is (mel bin, mel frame) and `hidden` (frame, width), both over `seconds` from the start of the window;
    `kinds` (frame,) is 0 where a frame is padding. Neurons are z-scored and sorted by when they peak.
    """
    fig, (wave, picture, heat) = plt.subplots(
        3, 1, figsize=(8.4, 6.2), sharex=True, gridspec_kw={"height_ratios": [1, 2, 3]}
    )
    shown = kinds[: hidden.shape[0]] > 0
    spread = hidden[shown].std(axis=0) + 1e-9
    z = (hidden - hidden[shown].mean(axis=0)) / spread
    order = np.argsort(np.argmax(z[shown], axis=0), kind="stable")
    wave.plot(np.arange(len(sound)) / rate, sound, color=INK, linewidth=0.4)
    wave.set(title="Waveform", yticks=[], xlim=(0, seconds))
    picture.imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(*_centred(seconds, mel.shape[1]), 0, len(mel)),
        cmap="Greys",
        interpolation="none",
    )
    picture.set(title="What Whisper is given: log-mel spectrogram", ylabel="mel bin")
    edges = _centred(seconds, len(z))
    drawn = heat.imshow(z[:, order].T, origin="lower", aspect="auto", extent=(*edges, 0, z.shape[1]),
                        cmap=DIFFERENCE, vmin=-4, vmax=4, interpolation="none")  # fmt: skip
    heat.set(title=f"What {site} says", xlabel="seconds", xlim=(0, seconds), ylabel="neuron, by time of its peak")
    fig.colorbar(drawn, ax=heat, label="standard deviations", shrink=0.9)
    if not shown.all():
        end = seconds * shown.sum() / len(shown) + edges[0]
        for axis in (picture, heat):
            axis.axvspan(end, seconds, color="white", alpha=0.55, linewidth=0)
            axis.axvline(end, color=INK, linewidth=1, linestyle=":")
        wave.annotate("padding", ((end + seconds) / 2, 0), ha="center", va="center", color=GREY)
    return fig


def spoken(sound: np.ndarray, rate: int, mel: np.ndarray, told: pd.DataFrame) -> Figure:
    """One clip: waveform with its words, spectrogram with its phones.

    `told` has a row a phone: start and end (seconds), ipa, word, word_index; `mel` is (mel bin, mel frame) over the
    length of the sound.
    """
    words = told.groupby("word_index").agg(word=("word", "first"), start=("start", "min"), end=("end", "max"))
    seconds = len(sound) / rate
    fig, (wave, picture) = plt.subplots(2, 1, figsize=(8.4, 4.6), sharex=True, gridspec_kw={"height_ratios": [1, 2.4]})
    wave.plot(np.arange(len(sound)) / rate, sound, color=INK, linewidth=0.4)
    top = 1.25 * np.abs(sound).max()
    wave.set(title="Words", yticks=[], xlim=(0, seconds), ylim=(-top, 1.7 * top))
    picture.imshow(
        mel, origin="lower", aspect="auto", extent=(*_centred(seconds, mel.shape[1]), 0, len(mel)), cmap="Greys",
        interpolation="none",
    )  # fmt: skip
    picture.set(title="Phones", ylabel="mel bin", xlabel="seconds", xlim=(0, seconds), ylim=(0, 1.12 * len(mel)))
    for axis, rows, height in ((wave, words, 1.15 * top), (picture, told[["ipa", "start", "end"]], 1.05 * len(mel))):
        for name, start, end in rows.itertuples(index=False):
            axis.axvline(start, color=ORANGE, linewidth=0.8)
            axis.text((start + end) / 2, height, name, ha="center", va="center", fontsize=8, clip_on=True)
    return fig


def around(lines: dict[str, np.ndarray], milliseconds: np.ndarray) -> Figure:
    """A curve a name over the time from a moment; one called "chance" is grey and dotted."""
    fig, axis = plt.subplots()
    looks = itertools.cycle(
        [("o", BLUE, "-"), ("^", ORANGE, "--"), ("s", INK, "-"), ("D", BLUE, ":"), ("v", ORANGE, "-")]
    )
    for name, line in lines.items():
        marker, colour, style = ("", GREY, ":") if name == "chance" else next(looks)
        axis.plot(milliseconds, line, marker=marker, color=colour, linestyle=style, label=name, markersize=4)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.legend()
    return fig


def by_kind(frame: pd.DataFrame, x: str, y: str, low: str, high: str, kind: str = "kind") -> Figure:
    """A line a kind of frame over the layers: median, and the band from `low` to `high`."""
    looks = {"speech": (BLUE, "o", "-"), "silence": (ORANGE, "^", "-"), "padding": (GREY, "s", ":")}
    fig, axis = plt.subplots()
    for name, part in frame.groupby(kind, sort=False):
        colour, marker, line = looks[name]
        axis.plot(part[x], part[y], color=colour, marker=marker, linestyle=line, label=name)
        axis.fill_between(part[x], part[low], part[high], color=colour, alpha=0.15, linewidth=0)
    axis.legend()
    return fig


def curves(lines: dict[str, np.ndarray]) -> Figure:
    """A rising curve a site, from dark to light in the order given, over 1, 2, … on a logarithmic axis."""
    fig, axis = plt.subplots()
    shades = plt.get_cmap(MAGNITUDE)(np.linspace(0, 0.85, len(lines)))
    for shade, (name, line) in zip(shades, lines.items(), strict=True):
        axis.plot(np.arange(1, len(line) + 1), line, color=shade, label=name)
    axis.set(xscale="log", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    return fig


def learning(history: pd.DataFrame) -> Figure:
    """Running means over a training: the terms of the loss, L0, and the share of dead latents."""
    smooth = history.rolling(max(1, len(history) // 50), min_periods=1).mean()
    fig, axes = plt.subplots(1, 3, figsize=(9, 3))
    axes[0].plot(smooth.tokens, smooth.reconstruction, color=BLUE, label="reconstruction")
    axes[0].plot(smooth.tokens, smooth.auxiliary, color=ORANGE, linestyle="--", label="auxiliary")
    axes[0].legend()
    axes[1].plot(smooth.tokens, smooth.l0, color=BLUE)
    axes[2].plot(smooth.tokens, smooth.dead, color=BLUE)
    for axis, title in zip(axes, ["Two terms of the loss", "L0 is kept at k", "Dead latents"], strict=True):
        axis.set(title=title, xlabel="frames seen", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter(EngFormatter())
    axes[2].yaxis.set_major_formatter(PercentFormatter(1))
    return fig


def with_intervals(frame: pd.DataFrame, x: str, y: str, by: str) -> Figure:
    """A line with error bars for each value of `by`, first in blue; bars from `y`_low to `y`_high."""
    fig, axis = plt.subplots(figsize=(7.2, 4))
    looks = [("o", BLUE, "-"), ("^", ORANGE, "--"), ("s", INK, "-"), ("D", GREY, "--"), ("x", GREY, ":")]
    for (name, part), (marker, colour, line) in zip(frame.groupby(by, sort=False), looks, strict=False):
        reach = np.abs(part[[f"{y}_low", f"{y}_high"]].to_numpy().T - part[y].to_numpy())
        if len(part) > 4 and part[x].dtype.kind not in "if":
            axis.tick_params(axis="x", rotation=20)
        axis.errorbar(
            part[x], part[y], yerr=reach, marker=marker, color=colour, linestyle=line, label=name, capsize=3, lw=1.2
        )
    axis.set(ylim=(0, None))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def pareto(points: pd.DataFrame, line: pd.DataFrame, name: str) -> Figure:
    """What each point of a sweep costs and leaves: `l0` × `fvu`, with bars from `fvu_low` to `fvu_high`.

    A colour and a marker a `variant`; an ink line through those on the `front`; a grey one, `name`, through `line`,
    which has the same two columns and is what has to be beaten.
    """
    fig, axis = plt.subplots(figsize=(7.2, 4.2))
    axis.plot(line.l0, line.fvu, color=GREY, linestyle=":", marker=".", label=name, zorder=1)
    front = points[points.front].sort_values("l0")
    axis.plot(front.l0, front.fvu, color=INK, linewidth=1, label="the front", zorder=2)
    for (variant, part), (marker, colour) in zip(points.groupby("variant", sort=False), _SEVEN, strict=False):
        reach = np.abs(part[["fvu_low", "fvu_high"]].to_numpy().T - part.fvu.to_numpy())
        axis.errorbar(
            part.l0, part.fvu, yerr=reach, marker=marker, color=colour, linestyle="", label=variant, capsize=3, lw=1
        )
    axis.set(xscale="log", yscale="log", xlabel="L0: latents used on a frame", ylabel="FVU, held-out speakers")
    for side, sub, says in ((axis.xaxis, [1, 2, 5], "{:g}"), (axis.yaxis, [1, 2, 3, 5, 7], "{:.3g}%")):
        side.set_major_locator(LogLocator(subs=sub))
        side.set_major_formatter(lambda value, _, says=says: says.format(value * (100 if "%" in says else 1)))
        side.set_minor_locator(NullLocator())
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


_SEVEN = [
    ("o", BLUE),
    ("^", ORANGE),
    ("s", "#CC79A7"),
    ("D", "#009E73"),
    ("v", "#56B4E9"),
    ("P", "#D55E00"),
    ("X", INK),
]


def levels(fig: Figure, lines: dict[str, float]) -> None:
    """Add grey horizontal lines to a figure, each under its name in the legend: rivals and chance."""
    for (name, height), style in zip(lines.items(), itertools.cycle(["--", "-.", ":", (0, (1, 3))])):
        fig.axes[0].axhline(height, color=GREY, linestyle=style, linewidth=1, label=name)
    fig.axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))


def rates(share: np.ndarray) -> Figure:
    """How many latents fire how often: a histogram over powers of ten, those that never fire left out."""
    fig, axis = plt.subplots(figsize=(7.2, 3))
    axis.hist(np.log10(share[share > 0]), bins=40, color=BLUE)
    axis.set(xlabel="share of frames, powers of ten", ylabel="latents")
    return fig


# ------------------------------------------------------------------------------------------------- leaves


def _image(fig: Figure, alt: str) -> str:
    if not alt.strip():
        raise ValueError("alt: say the finding in words, for those who cannot see the figure")
    file = io.BytesIO()
    _take_literally(fig)
    fig.savefig(file, format="png", dpi=150)
    plt.close(fig)
    data = base64.b64encode(file.getvalue()).decode()
    width = round(fig.get_figwidth() * 100)
    return f'<img style="max-width:100%" width="{width}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _take_literally(fig: Figure) -> None:
    """A $ in a word or a group of a corpus is a $: math is what matplotlib writes on logarithmic axes."""
    for axes in fig.axes:
        axes.get_xticklabels(which="both"), axes.get_yticklabels(which="both")  # brings them up to date
    for text in fig.findobj(Text):
        text.set_parse_math(r"\mathdefault" in text.get_text())


def _player(sound: np.ndarray, rate: int, label: str) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1), rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(file.getvalue()).decode()
    name = html.escape(label)
    return f'<audio controls preload="metadata" aria-label="{name}" src="data:audio/flac;base64,{data}"></audio>'


def _side(column: pd.Series) -> str:
    return (
        ' class="number" style="text-align:right"'
        if pd.api.types.is_numeric_dtype(column)
        else ' style="text-align:left"'
    )


_CURSOR = """((name, x0, x1, t0, t1) => {
  const figure = document.getElementById(name), stage = figure.querySelector('.stage');
  const sound = figure.querySelector('audio'), cursor = figure.querySelector('.cursor');
  const draw = () => {
    cursor.hidden = false;
    cursor.style.left = 100 * (x0 + (x1 - x0) * (sound.currentTime - t0) / (t1 - t0)) + '%';
    if (!sound.paused) requestAnimationFrame(draw);
  };
  for (const event of ['play', 'seeked', 'timeupdate']) sound.addEventListener(event, draw);
  stage.addEventListener('click', (event) => {
    const box = stage.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
    sound.currentTime = Math.min(sound.duration || 0, Math.max(0, t0 + (at - x0) / (x1 - x0) * (t1 - t0)));
  });
})"""
