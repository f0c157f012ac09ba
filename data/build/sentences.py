"""Sentences written for this project: a small grammar, some three hundred and fifty words, every sound of English.

A grammar and not a list, because the demo's Whisper needs more sentences than anyone would write, and because what is
held out must then be held out by rule. Two rules, either suffices: templates in HELD_TEMPLATES are never spoken in
training, and of every other template one sentence in eight, chosen by its hash, is kept away too. All words do occur
in training: what is tested is new voices saying new sentences, not new words.

Words that sound alike in one of the accents ("three" and "tree" in the Caribbean) are kept apart on purpose.
"""

import functools
import hashlib
import re

import numpy as np

WORDS = {
    "person": "boy girl baby doctor teacher sailor farmer judge king queen child brother mother father sister uncle "
    "painter singer driver baker soldier lawyer neighbour stranger cowboy nurse captain shepherd butcher poet",
    "animal": "dog cat bird fish fox horse mouse sheep goat lion tiger wolf zebra monkey chicken duck frog bear spider "
    "donkey beaver pigeon puppy",
    "thing": "book box bridge chair cup garden hammer jacket kitchen lamp letter machine mirror orange oyster "
    "paper pencil pocket ring rocket shovel spoon table television thumb toy treasure umbrella vase wagon watch window "
    "yacht yoghurt zipper basket candle measure engine feather glove hat ladder mattress oven package",
    "place": "beach castle church city cottage desert farm field forest harbour hospital house island library market "
    "mountain museum office palace river school shop station theatre tower valley village bathroom",
    "adjective": "angry big bright brown busy calm cheap clever cold curious dark dirty early empty famous funny "
    "gentle golden green happy heavy huge joyful kind large lazy loud lucky noisy odd old pale proud quick quiet red "
    "rich rough sharp shiny silver smooth strange strong thick tiny ugly usual warm wet white wild yellow young",
    "saw": "asked caught chased followed found heard helped joined liked loved met missed pushed "
    "remembered touched trusted visited watched",
    "moved": "bought broke brought carried cleaned closed dropped fixed gave hid lost opened painted pulled sold stole "
    "took threw used washed wanted",
    "did": "laughed danced jumped slept smiled waited walked worked shouted sang played vanished",
    "adverb": "again already badly carefully often quickly quietly slowly together usually yesterday tonight",
    "near": "above behind beside beyond inside near outside under",
    "number": "five six seven nine eleven twelve twenty",
    "plural": "apples boats bottles cherries coins dishes eggs garages houses knives peaches pictures stones toys "
    "voices wheels youths judges oranges things",
    "mass": "bread butter cheese coffee honey juice milk rice salt soup sugar water oil",
    "pleasure": "pleasure vision decision joy noise music thunder silence beige azure fashion nothing",
    "day": "monday tuesday thursday friday saturday sunday",
}
WORDS = {kind: words.split() for kind, words in WORDS.items()}

TEMPLATES = [
    "the {adjective} {person} {saw} the {animal}",
    "the {person} {moved} a {adjective} {thing}",
    "my {person} {saw} {number} {adjective} {plural}",
    "we {moved} the {thing} {near} the {place}",
    "they {saw} a {person} {near} the {adjective} {place}",
    "a {adjective} {animal} {did} {near} the {thing}",
    "she {moved} some {mass} and {number} {plural}",
    "he {did} {adverb} with his {person}",
    "her {animal} {did} {adverb}",
    "this {thing} was {adjective} and {adjective}",
    "is the {person} at the {place} on {day}",
    "please give me that {adjective} {thing}",
    "could you measure the {thing} on {day}",
    "there is {mass} in the {thing}",
    "i think the {animal} {did} in the {place}",
    "{number} {plural} were {near} the {place}",
    "the {pleasure} of the {place} was {adjective}",
    "why did the {person} choose {mass}",
    "where are those {adjective} {plural}",
    "our {person} said {pleasure} {adverb}",
    "you should put the {mass} {near} the {thing}",
    "on {day} the {person} {saw} your {animal}",
    "both {plural} have a {adjective} voice",
    "who {moved} the {plural} from the {place}",
    "put {number} {plural} on my {thing}",
    "every {person} {saw} the {pleasure}",
]
HELD_TEMPLATES = [
    "on {day} we {did} with the {adjective} {person}",
    "the {animal} and the {person} were {adjective}",
    "why is your {thing} {near} the {place}",
    "some {mass} was in that {adjective} {thing}",
]


@functools.cache
def vocabulary() -> list[str]:
    """Every word that can be said."""
    fixed = {word for template in TEMPLATES + HELD_TEMPLATES for word in template.split() if "{" not in word}
    return sorted(fixed.union(*WORDS.values()))


def held_out(sentence: str) -> bool:
    """Whether a sentence of TEMPLATES is kept away from training: one in eight, by its hash."""
    return hashlib.sha256(sentence.encode()).digest()[0] % 8 == 0


def draw(rng: np.random.Generator, held: bool = False) -> str:
    """A sentence for training, or (half from templates of their own) one that training never says."""
    while True:
        own = held and rng.random() < 0.5
        templates = HELD_TEMPLATES if own else TEMPLATES
        template = templates[rng.integers(len(templates))]
        words = [
            WORDS[word[1:-1]][rng.integers(len(WORDS[word[1:-1]]))] if word.startswith("{") else word
            for word in template.split()
        ]
        sentence = " ".join(words)
        content = [word for word in words if len(word) > 3]
        if len(set(content)) == len(content) and (own or held_out(sentence) == held):
            return sentence


def shuffled(rng: np.random.Generator) -> str:
    """Three to eight words in no order: whoever learns from it must listen, for what comes next cannot be guessed."""
    words = vocabulary()
    return " ".join(words[i] for i in rng.choice(len(words), rng.integers(3, 9), replace=False))


def altered(rng: np.random.Generator) -> str:
    """The beginning of one sentence and the end of another, with one to three words left out, added or replaced.

    Nearly grammar, and not to be guessed: small words ("in", "was", "the") stand where the grammar never has them. What
    is held out is never made.
    """
    words = vocabulary()
    while True:
        first, second = draw(rng).split(), draw(rng).split()
        said = first[: rng.integers(1, len(first) + 1)] + second[rng.integers(0, len(second)) :]
        for _ in range(rng.integers(1, 4)):
            at, source = rng.integers(len(said)), (first, second, words)[rng.integers(3)]
            new = [source[rng.integers(len(source))] for _ in range(rng.integers(0, 3))]
            said[at : at + rng.integers(0, 2)] = new
            said = said or new or ["the"]
        sentence = " ".join(said)
        if 3 <= len(said) <= 9 and not held_out(sentence) and not any(re.fullmatch(p, sentence) for p in _held()):
            return sentence


@functools.cache
def _held() -> list[str]:
    """What a sentence of a held-out template looks like."""
    return [re.sub(r"{\w+}", r"\\w+", template) for template in HELD_TEMPLATES]


if __name__ == "__main__":
    print(len(vocabulary()), "words")
    generator = np.random.default_rng(0)
    for _ in range(10):
        print(draw(generator), "|", draw(generator, held=True), "|", altered(generator))
