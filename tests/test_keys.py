"""Keys of results cover every constant of the package that their code reads, or it is named here with a reason."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import types

import pytest

import whisper_sae
from whisper_sae import (
    atlas,
    dictionaries,
    elsewhere,
    emotions,
    erasing,
    explained,
    faithfulness,
    fingerprints,
    fragments,
    galleries,
    hallucination,
    instrument,
    meaning,
    padding,
    phonetics,
    profiles,
    punctuation,
    recipes,
    restoring,
    targeted,
    trials,
    voice_probes,
    voices,
    wording,
)

SHOWN = "shows results or asks about them: pages, figures, the explorer, notes, tables of a page"
SPREAD = "how work is spread or fetched"
ASKED = "in the parameters of each result that depends on it, or in its items"
DERIVED = "what is read is another constant or a loop that is made of it"

EXCEPTIONS = {
    **dict.fromkeys(
        ["calibrations", "catalogue", "cautions", "comparisons", "explorer", "figures", "figures_of_clusters",
         "interchange", "labels", "pages", "pairs", "private_paths", "provenance",
         "token_features.DRAWS", "punctuation.COLUMNS",
         "questions", "readable", "report",
         "stills", "template", "uploads", "verdicts", "messages", "by_label.SIDES",
         "confounds.OVERLAP", "contrasts.SPLITS", "correlates.EXPLAINED", "faithfulness.MEAN",
         "gallery.SHOWN", "held_fixed.AT_ONCE", "held_fixed.ALIKE",
         "interventions", "instrument.MOST_LABELS", "meaning.INPUTS", "atlas._PLACE", "atlas._TRUST",
         "punctuation.NEEDED", "restoring.PATTERNS", "activations.__all__", "model.__all__", "recipes.__all__",
         "phones.__all__"],
        SHOWN,
    ),
    **dict.fromkeys(
        ["cluster", "kernels.ALONE", "kernels.BLOCK", "kernels.jit", "profiles", "fingerprints", "store",
         "model_wheels"],
        SPREAD,
    ),
    **dict.fromkeys(
        ["prompts", "toml_files", "encoders.BUNDLED", "encoders.PACKAGE", "fragments.GOODS", "fragments.MEASURES",
         "fragments.TITLES", "fragments.STEMS", "fragments.ENDINGS", "fragments.MONTHS", "selection.DRAWN_BY",
         "emotions.POSITIONS", "emotions.HOW", "emotions.L1", "restoring.HOW", "synthetic.SETTINGS", "narrow.DTYPES",
         "voice_probes._INPUTS", "atlas.NO_LABELS"],
        ASKED,
    ),
    **dict.fromkeys(
        ["articulation.CONSONANTS", "articulation.VOWELS", "decoding.See", "hallucination.RULES", "kernels.SUMS",
         "meaning.RATE", "media.FRAME", "speech.COLUMNS", "speech.KINDS", "text.NAMES"],
        DERIVED,
    ),
}  # fmt: skip
"""Modules and constants that are in no key by themselves, and why no result can be stale for it."""


def modules() -> list:
    names = [one.name for one in pkgutil.iter_modules(whisper_sae.__path__) if one.name != "__main__"]
    return [importlib.import_module(f"whisper_sae.{name}") for name in names]


def constants(module) -> list[str]:
    """The names that a module assigns, but for classes, functions and modules."""
    assigned = [
        node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    targets = [target for node in assigned for target in getattr(node, "targets", [getattr(node, "target", None)])]
    names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    kinds = (types.ModuleType, types.FunctionType, type)
    return [name for name in names if not isinstance(getattr(module, name), kinds)]


@pytest.fixture(scope="module")
def made() -> list:
    """The functions that make results, one of each kind."""
    run, seed = profiles.TABLE["demo"], 0
    site = run.focus
    every = [
        recipes.clips(run, seed), recipes.activations(run, seed), recipes.decoded(run, seed),
        recipes.activations(dataclasses.replace(run, on_the_fly=True), seed),
        recipes.other_ways(run, seed), recipes.fetched("some/corpus", run, seed), instrument.transcripts(run, seed),
        instrument.phone_probe(run, seed), instrument.label_probe(run, seed, {}), padding.learnt(run, seed),
        dictionaries.dictionary(run, seed, site), dictionaries.one_pass(run, seed, (site,), seed),
        dictionaries.rivals(run, seed, site, ("decoder",)), dictionaries.stability(run, seed, site),
        dictionaries.sweep(dictionaries.grid(run, seed), seed, site), atlas.means(run, seed, site),
        atlas.grouped(run, seed, site, True), atlas.families_of(run, seed, site), atlas.mapped(run, seed, site),
        atlas.forests(run, seed, site), voices.of_features(run, seed, site), voice_probes.probed(run, seed, site, {}),
        trials.tried(run, seed, site, "null_label", ["mic"]), faithfulness.faithful(run, seed, site),
        targeted.effects(run, seed, site), targeted.dose(run, seed, site), erasing.erased(run, seed, site, "gender"),
        hallucination.bench(run, seed, site), punctuation.tested(run, seed),
        meaning.codes(run, seed, site), galleries.gathered(run, seed, site),
        phonetics.detection(run, seed, site), phonetics.answers(run, seed, site), wording.words(run, seed, site),
        explained.acoustics_of(run, seed), explained.correlates_of(run, seed, site),
        explained.sounds_of(run, seed, site),
    ]  # fmt: skip
    told = fragments.write_texts(60, seed)
    net = restoring.restorer(told, seed)
    recording = elsewhere.Reading("a net", "key", lambda: fragments.load(""), told, fragments.collate, 8)
    listened = elsewhere.activations(recording, ["layers.0"])
    trained = elsewhere.dictionary(listened, restoring.HOW, seed, "layers.0")
    heard = emotions.Heard(recording, "layers.0", listened, elsewhere.pooled(listened))
    every += [net, listened, trained, heard.pooled, elsewhere.codes(listened, trained, "layers.0")]
    every.append(emotions.features(heard, seed))
    return [part for recipe in every for part in (recipe.make, *recipe.code)]


def defaults(parts: dict) -> list:
    """The values of the defaults of all functions of the package that results are made by."""
    found = []
    for name in parts:
        module, _, rest = name.removeprefix("whisper_sae.").partition(".")
        thing = sys.modules.get(f"whisper_sae.{module}")
        for one in rest.split("."):
            thing = getattr(thing, one, None)
        thing = inspect.unwrap(getattr(thing, "py_func", thing)) if callable(thing) else thing
        methods = vars(thing).values() if inspect.isclass(thing) else [thing]
        for one in filter(inspect.isfunction, methods):
            found += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
    return found


def test_every_constant_is_in_a_key_or_excepted(made):
    """A default counts by its value: it is in the digest of the function."""
    covered = fingerprints.of(*made)
    given, missing, needless = defaults(covered), [], set(EXCEPTIONS)
    for module in modules():
        own = module.__name__.removeprefix("whisper_sae.")
        for name in constants(module):
            excepted = {own, f"{own}.{name}"} & set(EXCEPTIONS)
            needless -= excepted if f"{module.__name__}.{name}" not in covered else set()
            value = getattr(module, name)
            if f"{module.__name__}.{name}" not in covered and not excepted and not any(value is one for one in given):
                missing.append(f"{own}.{name}")
    assert not missing, " ".join(missing)
    assert not needless, f"no longer needed: {sorted(needless)}"


@pytest.mark.slow
def test_another_value_of_any_constant_is_another_digest(made, monkeypatch):
    before = fingerprints.of(*made)
    tried = 0
    for module in modules():
        for name in constants(module):
            if f"{module.__name__}.{name}" in before:
                with monkeypatch.context() as patch:
                    patch.setattr(module, name, ("another value", 7))
                    patch.setattr(fingerprints, "Unreadable", TypeError)
                    assert fingerprints.of(*made) != before, f"{module.__name__}.{name}"
                tried += 1
    assert tried > 150
