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
from whisper_sae import code_hash, profiles
from whisper_sae.experiments import (
    any_module,
    calibration_study,
    clip_clusters,
    concept_erasure,
    correlates_of_features,
    dashboards,
    emotions,
    faithfulness,
    feature_index,
    hallucination,
    padding,
    phone_ablation,
    phone_selectivity,
    pipeline,
    punctuation,
    sae_comparison,
    sanity_checks,
    speaker_probes,
    speakers,
    toy_model,
    toy_restoration,
    transcript_words,
)

SHOWN = "shows results or asks about them: pages, figures, the explorer, notes, tables of a page"
SPREAD = "how work is spread or fetched"
ASKED = "in the parameters of each result that depends on it, or in its items"
DERIVED = "what is read is another constant or a loop that is made of it"

EXCEPTIONS = {
    **dict.fromkeys(
        ["viz.calibrations", "explorer.catalogue", "sae.diagnostics", "explorer.comparisons",
         "explorer.notebook_widget", "viz.display", "viz.cluster_plots", "sae.io", "explorer.annotations",
         "report.pages", "report.pairing", "private_paths", "report.provenance", "experiments.token_features.DRAWS",
         "experiments.punctuation.COLUMNS", "explorer.api", "report.readable", "report.runner", "viz.stills",
         "report.template", "data.uploads", "experiments.criteria", "explorer.messages", "features.tuning.SIDES",
         "stats.matching.OVERLAP", "experiments.speaker_effects.SPLITS", "features.correlates.EXPLAINED",
         "experiments.faithfulness.MEAN", "explorer.dashboard.SHOWN", "stats.covariates.AT_ONCE",
         "stats.covariates.ALIKE", "experiments.prompt_interventions", "experiments.sanity_checks.MOST_LABELS",
         "experiments.feature_index.INPUTS", "experiments.clip_clusters._PLACE", "experiments.clip_clusters._TRUST",
         "experiments.punctuation.NEEDED", "experiments.toy_restoration.PATTERNS", "activations.store.__all__",
         "model.whisper_model.__all__", "experiments.pipeline.__all__", "data.frame_alignment.__all__"],
        SHOWN,
    ),
    **dict.fromkeys(
        ["parallel", "sae.kernels.ALONE", "sae.kernels.BLOCK", "compiled.jit", "profiles", "code_hash", "cache",
         "model.package_index"],
        SPREAD,
    ),
    **dict.fromkeys(
        ["experiments.prompts", "toml_files", "model.encoders.BUNDLED", "model.encoders.PACKAGE",
         "experiments.toy_model.GOODS", "experiments.toy_model.MEASURES", "experiments.toy_model.TITLES",
         "experiments.toy_model.STEMS", "experiments.toy_model.ENDINGS", "experiments.toy_model.MONTHS",
         "experiments.selection.DRAWN_BY", "experiments.emotions.POSITIONS", "experiments.emotions.HOW",
         "experiments.emotions.L1", "experiments.toy_restoration.HOW", "sae.synthetic.SETTINGS",
         "activations.dtypes.DTYPES", "experiments.speaker_probes._INPUTS", "experiments.clip_clusters.NO_LABELS"],
        ASKED,
    ),
    **dict.fromkeys(
        ["data.phonology.CONSONANTS", "data.phonology.VOWELS", "model.decoding.See",
         "experiments.hallucination.RULES", "sae.kernels.SUMS", "experiments.feature_index.RATE", "viz.media.FRAME",
         "data.clip_table.COLUMNS", "data.clip_table.KINDS", "model.text.NAMES"],
        DERIVED,
    ),
}  # fmt: skip
"""Modules and constants that are in no key by themselves, and why no result can be stale for it."""


def modules() -> list:
    names = [one.name for one in pkgutil.walk_packages(whisper_sae.__path__, "whisper_sae.") if not one.ispkg]
    return [importlib.import_module(name) for name in names if name != "whisper_sae.__main__"]


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
        pipeline.clips(run, seed), pipeline.activations(run, seed), pipeline.decoded(run, seed),
        pipeline.activations(dataclasses.replace(run, on_the_fly=True), seed), pipeline.other_ways(run, seed),
        pipeline.fetched("some/corpus", run, seed), sanity_checks.transcripts(run, seed),
        sanity_checks.phone_probe(run, seed), sanity_checks.label_probe(run, seed, {}), padding.learnt(run, seed),
        sae_comparison.dictionary(run, seed, site), sae_comparison.one_pass(run, seed, (site,), seed),
        sae_comparison.rivals(run, seed, site, ("decoder",)), sae_comparison.stability(run, seed, site),
        sae_comparison.sweep(sae_comparison.grid(run, seed), seed, site), clip_clusters.means(run, seed, site),
        clip_clusters.grouped(run, seed, site, True), clip_clusters.families_of(run, seed, site),
        clip_clusters.mapped(run, seed, site), clip_clusters.forests(run, seed, site),
        speakers.of_features(run, seed, site), speaker_probes.probed(run, seed, site, {}),
        calibration_study.tried(run, seed, site, "null_label", ["mic"]), faithfulness.faithful(run, seed, site),
        phone_ablation.effects(run, seed, site), phone_ablation.dose(run, seed, site),
        concept_erasure.erased(run, seed, site, "gender"), hallucination.bench(run, seed, site),
        punctuation.tested(run, seed), feature_index.codes(run, seed, site), dashboards.gathered(run, seed, site),
        phone_selectivity.detection(run, seed, site), phone_selectivity.answers(run, seed, site),
        transcript_words.words(run, seed, site), correlates_of_features.acoustics_of(run, seed),
        correlates_of_features.correlates_of(run, seed, site), correlates_of_features.sounds_of(run, seed, site),
    ]  # fmt: skip
    told = toy_model.write_texts(60, seed)
    net = toy_restoration.restorer(told, seed)
    recording = any_module.Reading("a net", "key", lambda: toy_model.load(""), told, toy_model.collate, 8)
    listened = any_module.activations(recording, ["layers.0"])
    trained = any_module.dictionary(listened, toy_restoration.HOW, seed, "layers.0")
    heard = emotions.Heard(recording, "layers.0", listened, any_module.pooled(listened))
    every += [net, listened, trained, heard.pooled, any_module.codes(listened, trained, "layers.0")]
    every.append(emotions.features(heard, seed))
    return [part for recipe in every for part in (recipe.make, *recipe.code)]


def defaults(parts: dict) -> list:
    """The values of the defaults of all functions of the package that results are made by."""
    found = []
    for name in parts:
        module, rest = name, []
        while module not in sys.modules:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
        thing = sys.modules[module]
        for one in rest:
            thing = getattr(thing, one, None)
        thing = inspect.unwrap(getattr(thing, "py_func", thing)) if callable(thing) else thing
        methods = vars(thing).values() if inspect.isclass(thing) else [thing]
        for one in filter(inspect.isfunction, methods):
            found += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
    return found


def test_every_constant_is_in_a_key_or_excepted(made):
    """A default counts by its value: it is in the digest of the function."""
    covered = code_hash.of(*made)
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
    before = code_hash.of(*made)
    tried = 0
    for module in modules():
        for name in constants(module):
            if f"{module.__name__}.{name}" in before:
                with monkeypatch.context() as patch:
                    patch.setattr(module, name, ("another value", 7))
                    patch.setattr(code_hash, "Unreadable", TypeError)
                    assert code_hash.of(*made) != before, f"{module.__name__}.{name}"
                tried += 1
    assert tried > 150
