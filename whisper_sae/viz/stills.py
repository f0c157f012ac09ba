"""What of the explorer can be shown where nothing answers: a feature's loudest clips, to be seen and heard, as HTML.

A notebook that was rendered has no kernel, so its page shows this in the place of the widget. Whatever comes from data
is escaped; sound and pictures are in it.
"""

import html

import numpy as np

from whisper_sae.viz import media

WIDE = "position:absolute;inset:0;width:100%;height:100%"


def shown(told: dict, sounds: list[tuple[np.ndarray, str]], tracks: list[np.ndarray], title: str) -> str:
    """HTML of an answer about a feature: `told` is that of `Questions.feature`; of each clip that it found `sounds` has
    the samples at 16 kHz and the picture, base64 of a WebP, and `tracks` what the feature says, (frame,)."""
    found = zip(told["found"], sounds, tracks, strict=False)
    cards = "".join(_card(row, sound, picture, track, told) for row, (sound, picture), track in found)
    label = f" · {html.escape(told['label'])}" if told["label"] else ""
    return (
        f'<figure class="voices"><p class="reading">{html.escape(title)}, feature {told["feature"]}{label}: fires on '
        f"{told['rate']:.2%} of the frames, in {told['fires_in']:,} of {told['searched']:,} clips. In a notebook that "
        "runs, this is the explorer.</p>"
        f'<div style="display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))">{cards}</div>'
        "<figcaption>The clips in which it peaks highest: the spectrogram, and over it what the feature says; the word "
        "at the peak is marked.</figcaption></figure>"
    )


def _card(row: dict, sound: np.ndarray, picture: str, track: np.ndarray, told: dict) -> str:
    """One clip; frame i of a track is centred on i · 20 ms: its step begins half a frame before, as in drawing.js."""
    far = max(abs(told["low"]), abs(told["high"]), 1e-9)
    signed = told["low"] < 0
    ground, height = (50, 48) if signed else (100, 90)
    steps = "".join(
        f"L{n} {ground - height * x / far:.1f}L{n + 1} {ground - height * x / far:.1f}" for n, x in enumerate(track)
    )
    path = f"M0 {ground}{steps}L{len(track)} {ground}z"
    clip, at = row["clip"], row["at"]
    shift = f"transform:translateX({-0.5 / row['seconds']:.4f}%)"  # its columns are centred on their 10 ms
    alt = html.escape(
        f"Spectrogram of {clip['name']}; feature {told['feature']} peaks at {at:.2f} s with {row['value']:.3g}."
    )
    words = "".join(
        f"<mark>{html.escape(word)}</mark> " if start <= at < end else f"{html.escape(word)} "
        for start, end, word in clip["words"]
    )
    return (
        f'<div class="voice"><div role="img" aria-label="{alt}" style="position:relative;height:6rem;overflow:hidden">'
        f'<img alt="" src="data:image/webp;base64,{picture}" style="{WIDE};{shift};filter:invert(1)">'
        f'<svg viewBox="0.5 0 {len(track)} 100" preserveAspectRatio="none" style="{WIDE}" aria-hidden="true">'
        f'<path d="{path}" fill="#0072b2" fill-opacity=".45" stroke="#0072b2"></path></svg></div>'
        f'<audio controls preload="none" src="data:audio/ogg;base64,{media.text(media.opus(sound))}"></audio>'
        f"<p>{words or html.escape(clip['text'])}<br><small>{html.escape(clip['name'])}, {row['value']:.3g}</small></p>"
        "</div>"
    )
