"""Prompts for music in which emotion is crossed with all else, so that nothing but the mood can tell emotions apart.

Every *block* is an instrument, a genre, an intensity, a style and a template, and has one prompt of each emotion: the
four differ in their *phrase* alone. Styles are three: an `adjective` names the mood, a `scene` and a `metaphor` bring
it about without any word for it (`word_free`). A phrase is the unit of all statistics: what is found of one phrase is
found of no emotion. Two templates are held out (`split` test), and two phrases of every twelve (validation).
"""

import itertools
import re

import numpy as np
import pandas as pd

INSTRUMENTS = ("piano", "guitar", "violin", "flute", "synthesizer", "orchestra")
GENRES = ("classical", "pop", "rock", "jazz", "ambient", "folk")
INTENSITIES = ("subtle", "moderate", "intense")
STYLES = ("adjective", "scene", "metaphor")

DEGREES = {
    "adjective": ("slightly ", "", "very "),
    "scene": ("with a hint of ", "that brings to mind ", "that is all about "),
    "metaphor": ("a little like ", "like ", "just like "),
}
"""How an intensity is said in each style, before the phrase."""

TEMPLATES = (
    "{genre} piece for {instrument}, {mood}",
    "{instrument} playing {genre}, {mood}",
    "{genre} {instrument} music, {mood}",
    "instrumental {genre} track with {instrument}: {mood}",
    "{mood}, {genre} style, {instrument}",
    "{instrument} solo in {genre} style, {mood}",
    "write something {mood} for {instrument}, as {genre} would have it",
    "a recording of {instrument} and little else, {mood}, from the {genre} shelf",
)
HELD_TEMPLATES = (6, 7)
HELD_PHRASES = (10, 11)

PHRASES = {
    "happy": {
        "adjective": "happy, cheerful, joyful, merry, jubilant, gleeful, delighted, jolly, glad, elated, festive, "
        "jovial",
        "scene": "children chasing kites on a beach, a birthday cake with too many candles, friends at a long "
        "breakfast, a puppy in a pile of leaves, the last day of school, a wedding dance in the village "
        "square, ice cream on a hot afternoon, a picnic under cherry trees, a letter with good news, a "
        "parade with paper hats, an old couple winning at the fair, a family together again at the "
        "airport",
        "metaphor": "sunlight through new leaves, a pocket full of sweets, a door opening on a garden, bells over a "
        "market, lemonade on the first day of summer, a yellow balloon let go, bread just out of the "
        "oven, a joke that everyone gets, a rainbow over wet roofs, a wish that came true, a window "
        "full of flowers, a tune you cannot help but hum",
    },
    "sad": {
        "adjective": "sad, sorrowful, mournful, melancholy, gloomy, heartbroken, tearful, grieving, dejected, "
        "woeful, forlorn, wistful",
        "scene": "an empty chair at the table, rain on a grave, a letter that came too late, the last train "
        "leaving without her, a dog waiting at the door for nobody, a house after the funeral, the "
        "clothes of a lost father, a hospital corridor at night, a closed toy shop in winter, an old "
        "man eating alone, a wedding ring in a drawer, goodbyes at a harbour",
        "metaphor": "ink running in the rain, a candle burning down in an empty room, a stone sinking in dark "
        "water, a phone that no longer rings, withered roses in a vase, a coat that still smells of "
        "someone gone, a bird with a broken wing, ash where a house stood, the colour leaving a "
        "photograph, a bell for the dead, a road that ends at a wall, a garden nobody tends any more",
    },
    "calm": {
        "adjective": "calm, peaceful, serene, tranquil, relaxed, soothing, restful, placid, unhurried, quiet, "
        "gentle, mellow",
        "scene": "snow falling on a lake, a cat asleep by the window, tea steaming on a porch, a monastery "
        "garden at dawn, waves on an empty shore, a slow boat on a still river, clouds drifting over a "
        "meadow, a reading lamp late in the evening, slow breathing before sleep, moss on old stones, "
        "moonlight on a pond, a hammock between two pines",
        "metaphor": "a lake without wind, warm sand under bare feet, a long breath out, a feather coming down, wool "
        "blankets and low light, the hour after snowfall, a clock that nobody watches, dew on a "
        "spider's thread, milk poured into tea, the inside of a shell, shade under an oak, a boat that "
        "needs no oars",
    },
    "energetic": {
        "adjective": "energetic, lively, driving, vigorous, frantic, explosive, restless, dynamic, furious, "
        "pounding, frenetic, hyperactive",
        "scene": "a sprint to the finish line, a car chase through the city, a crowd jumping at a stadium, "
        "sparks flying from a forge, a boxer in the last round, a rocket leaving the pad, horses "
        "galloping downhill, a storm hitting the harbour, rush hour on a bicycle, a drum line at full "
        "tilt, skaters racing on ice, a kitchen at its busiest",
        "metaphor": "a fuse burning down, lightning on a wire, a wolf pack on the run, a train with no brakes, "
        "popcorn in a hot pan, a whip cracking, a swarm let out of its hive, an engine at the red line, "
        "a fist on a table, fireworks in a small yard, hail on a tin roof, a river breaking its dam",
    },
}  # fmt: skip
"""Twelve phrases of each emotion and style, parted by commas."""

EMOTIONS = tuple(PHRASES)

COLUMNS = ["id", "text", "emotion", "instrument", "genre", "intensity", "style", "template", "phrase", "block", "split"]


def phrases(emotion: str, style: str) -> list[str]:
    """The twelve phrases of an emotion in a style."""
    return PHRASES[emotion][style].split(", ")


def words_for_emotions() -> set[str]:
    """Every adjective that names a mood, each emotion's name among them: what a `word_free` prompt must not have."""
    return {word for emotion in EMOTIONS for word in phrases(emotion, "adjective")}


def generate(count: int = 1296, seed: int = 0) -> pd.DataFrame:
    """`count` prompts, a row each, as many of each emotion: `id text emotion instrument genre intensity style template
    phrase unit block word_free split`.

    1,296 cross everything once; more repeat the crossing with other phrases and templates, fewer are a random part of
    it. `unit` names the phrase, `block` numbers the four that belong together. ValueError unless 4 divides it.
    """
    if count < 4 or count % len(EMOTIONS):
        raise ValueError(f"count: {count} prompts cannot be {len(EMOTIONS)} for each block; give a multiple of 4")
    rng, rows = np.random.default_rng(seed), []
    cells = list(itertools.product(INSTRUMENTS, GENRES, range(len(INTENSITIES)), STYLES))
    order = [cells[n] for _ in range(-(-count // (4 * len(cells)))) for n in rng.permutation(len(cells))]
    turns = {style: _turns(rng) for style in STYLES}
    for block, (instrument, genre, intensity, style) in enumerate(order[: count // len(EMOTIONS)]):
        phrase, template = next(turns[style])
        for emotion in EMOTIONS:
            words = phrases(emotion, style)[phrase]
            told = {"instrument": instrument, "genre": genre, "mood": DEGREES[style][intensity] + words}
            split = "test" if template in HELD_TEMPLATES else "validation" if phrase in HELD_PHRASES else "train"
            rows.append((f"p{len(rows):05d}", TEMPLATES[template].format(**told), emotion, instrument, genre,
                         INTENSITIES[intensity], style, template, words, block, split))  # fmt: skip
    found = pd.DataFrame(rows, columns=COLUMNS)
    return found.assign(unit=found["style"] + ": " + found["phrase"], word_free=found["style"] != "adjective")


def _turns(rng: np.random.Generator):
    """Phrase and template for one block after another, endlessly: all pairs once before any comes again."""
    pairs = list(itertools.product(range(12), range(len(TEMPLATES))))
    while True:
        yield from (pairs[n] for n in rng.permutation(len(pairs)))


def with_emotion_words(texts) -> np.ndarray:
    """Which texts have a word for an emotion in them: (text,) bool."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(words_for_emotions())))})\b", re.IGNORECASE)
    return np.array([bool(pattern.search(text)) for text in texts])
