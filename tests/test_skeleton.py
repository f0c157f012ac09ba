"""How this project is built: what a notebook looks like, and who may import whom."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9]*.py"))
MODULES = {path.stem: path for path in (PROJECT / "whisper_sae").glob("*.py") if path.stem != "__init__"}

TAGS = {"parameters", "setup", "show-code", "hide-input", "figure", "checks", "nbval-check-output", "save"}
OPENING = ("You will", "You will learn", "You need", "Time")

ON_RECIPES = {"feeding", "dictionaries", "padding", "elsewhere", "emotions", "restoring"}
ON_RECIPES |= {"spoken", "instrument", "meaning", "phonetics", "wording", "explained", "galleries", "atlas"}
ON_RECIPES |= {"voices", "voice_probes", "contrasts", "trials"}
ON_RECIPES |= {"causal", "faithfulness", "targeted", "erasing", "hallucination", "punctuation", "explorer"}

# Leaves import no sibling. These stand on top of them:
ANYONE = {"durable"}  # how a file is written is said once
MAY_IMPORT = {
    "devices": {"memory"},
    "sae": {"devices",
                "interchange", "sparse"},  # what a saved one must be is said there
    "corpora": {"tables"},
    "speech": {"containers", "corpora", "tables"},  # a corpus is read by its layout; the sound is read here
    "sparse": {"kernels"},
    "alignments": {"corpora", "tables"},  # which files are sounds
    "selectivity": {"codes"},  # their entries, and what is known of the frames
    "detectors": {"codes", "intervals", "selectivity"},  # the best thresholds of each feature
    "timing": {"codes", "intervals"},
    "examples": {"speech"},  # the moment of a frame
    "edits": {"speech"},
    "acoustics": {"speech"},  # what is silence, and how samples are read, is said there
    "sounds": {"codes", "intervals"},
    "encoders": {"devices",
                "model_files"},
    "classes": {"chance"},  # what dealing gives
    "correlates": {"chance", "codes", "intervals", "selectivity"},  # ranks of entries, and what chance gives
    "phones": {"alignments"},  # what sounds when; how a file tells it is read there
    "tables": {"effects"},  # how a label is spelt
    "intervals": {"effects"},  # of the effect sizes there
    "forest": {"intervals"},  # what a bootstrap over units needs; from how many units on
    "probes": {"intervals"},
    "measure": {"intervals"},  # how few units are too few
    "by_label": {"intervals"},
    "controls": {"intervals"},
    "relabelling": {"effects"},
    "crossing": {"effects"},
    "confounds": {"crossing", "effects"},  # partial d is the same there
    "held_fixed": {"confounds", "effects", "relabelling"},
    "power": {"effects"},  # tidy labels
    "model": {"attention", "devices", "faster_whisper", "model_files", "model_wheels", "sites", "hooks", "logmel"},
    "faster_whisper": {"ctranslate2"},  # how its file is read
    "model_wheels": {"store"},  # a download is a result that is kept
    "modules": {"activations", "hooks"},  # the same store, the same hooks, any model
    "activations": {"narrow", "rows", "shards"},
    "transpose": {"kernels", "shards"},  # how loops are compiled
    "live": {"narrow", "rows", "shards"},  # the other source of rows
    "store": {"fingerprints", "memory"},  # a key names the code that makes a result
    "cluster": {"store", "cluster", "fingerprints"},  # one folder and one code for all; in a worker it imports itself
    "foreign": {"interchange"},  # what a folder of ours is, is said once
    "sharing": {"interchange"},
    "calibrations": {"figures"},  # how a table and a number are shown
    "labels": {"findings", "toml_files"},  # which writes a file whole or not at all
    "excerpts": {"speech"},  # a part of what it reads whole
    "listening": {"activations", "decoding", "excerpts", "model", "packing", "profiles", "speech", "text"},
    "selection": {"corpora", "hub", "languages", "profiles", "speech", "store"},
    "recording": {"devices",
                "activations", "cluster", "decoding", "languages", "listening", "model", "profiles", "selection",
                  "shards", "speech", "store", "text"},
    "profiles": {"languages", "sites", "toml_files"},  # names only: a profile may give a site OpenAI's name
    "private_paths": {"findings"},  # where reports go
    "report": {"forkserver", "private_paths", "profiles", "store", "findings", "pages", "pairs", "progress",
               "provenance", "readable"},
    "__main__": {"report"},
    "recipes": set(MODULES) - {"report", "__main__", "recipes", *ON_RECIPES},  # names the steps: knows every leaf
    "feeding": {"activations", "listening", "live", "model", "profiles", "recipes", "rows", "store"},
    "fitting": {"devices",
                "measure", "rows", "sae", "train"},
    "elsewhere": {"activations", "fitting", "interchange", "measure", "modules", "rows", "sae", "store", "transpose"},
    "restoring": {"activations", "codes", "detectors", "elsewhere", "fragments", "measure", "profiles", "sae", "store"},
    "interventions": {"controls"},
    "emotions": {"activations", "classes", "controls", "elsewhere", "encoders", "index", "interventions", "probes",
                 "profiles", "sae", "store", "verdicts"},
    "dictionaries": {"classes", "cluster", "feeding", "fitting", "interchange", "measure", "model", "profiles",
                     "recipes", "rows", "sae",
                     "store"},
    "padding": {"dictionaries", "feeding", "fitting", "measure", "profiles", "recipes", "rows", "sae", "store"},
    "spoken": {"alignments", "articulation", "phones", "profiles", "recipes"},
    "instrument": {"activations", "effects", "excerpts", "languages", "listening", "measure", "model", "phones",
                   "probes", "profiles", "recipes", "recording", "speaker_labels", "speech", "spoken", "store", "text"},
    "meaning": {"recipes", "dictionaries", "profiles", "store", "activations", "model", "measure", "sae", "spoken",
                "transpose", "index", "examples", "speech"},
    "phonetics": {"activations", "articulation", "by_label", "chance", "codes", "detectors", "index", "intervals",
                  "meaning", "phones", "profiles", "recipes", "selectivity", "speech", "spoken", "store", "timing"},
    "figures_of_meaning": {"by_label", "figures"},
    "scoring": {"intervals", "nonspeech", "text"},  # which transcripts have words; how errors are named
    "text": {"decoding", "languages", "model"},
    "decoding": {"hooks"},  # a layer norm that can be undone
    "losses": {"patching", "text"},
    "causal": {"decoding", "dictionaries", "edits", "interchange", "languages", "model", "nonspeech", "patching",
               "profiles",
               "recipes", "sae", "scoring", "speech", "store", "text"},
    "targeted": {"devices",
                 "causal", "controls", "edits", "intervals", "losses", "meaning", "patching", "phonetics", "profiles",
                 "recipes", "spoken", "store", "targets"},
    "erasing": {"devices",
                "activations", "causal", "controls", "dictionaries", "edits", "erasure", "patching", "phonetics",
                "probes", "profiles", "recipes", "scoring", "store"},
    "hallucination": {"devices",
                "causal", "dictionaries", "intervals", "languages", "model", "nonspeech", "patching", "probes",
                      "profiles", "recipes", "scoring", "speech", "store"},
    "steering": {"edits", "patching"},
    "token_features": {"intervals", "patching"},
    "punctuation": {"devices",
                "causal", "controls", "dictionaries", "edits", "intervals", "patching", "profiles", "recipes",
                    "sae", "store", "token_features", "train"},
    "figures_of_patching": {"figures", "speech"},
    "faithfulness": {"devices",
                "causal", "dictionaries", "intervals", "losses", "model", "patching", "profiles",
                     "recipes", "sae", "scoring", "store"},
    "patching": {"decoding", "devices", "edits", "model", "text"},
    "wording": {"activations", "chance", "codes", "index", "meaning", "profiles", "recipes", "speech", "store",
                "untimed"},
    "explained": {"acoustics", "activations", "chance", "codes", "correlates", "excerpts", "index", "intervals",
                  "listening", "meaning", "nonspeech", "profiles", "recipes", "selectivity", "sounds", "speech",
                  "spoken", "store"},
    "uploads": {"speech"},  # what is sound, and how it is read, is said there
    "comparisons": {"crossing", "effects"},
    "catalogue": {"excerpts", "logmel", "media", "speaker_labels", "speech"},
    "questions": {"catalogue", "comparisons", "effects", "labels", "media", "messages", "speech",
                  "uploads"},  # no model
    "explorer": {"controls", "galleries", "interchange", "languages", "media", "meaning", "messages", "model",
                 "profiles", "questions",
                 "recipes", "sae", "steering", "stills", "store", "template", "uploads"},
    "stills": {"media"},
    "gallery": {"findings", "media", "template"},  # how a page is written, what its browser may do, its template
    "pages": {"template"},
    "galleries": {"recipes", "dictionaries", "meaning", "phonetics", "profiles", "store", "codes", "examples",
                  "excerpts", "findings", "gallery", "index", "labels", "logmel", "media", "phones", "selectivity",
                  "speech", "spoken", "timing"},
    "atlas": {"activations", "clusters", "codes", "dictionaries", "effects", "excerpts", "families", "forest",
              "index", "intervals", "maps", "meaning", "profiles", "recipes", "sae", "speaker_labels", "speech",
              "store", "trees"},
    "speaker_labels": {"effects", "intervals"},
    "voices": {"activations", "codes", "confounds", "effects", "examples", "index", "intervals", "meaning", "power",
               "profiles", "recipes", "speaker_labels", "speech", "store"},
    "voice_probes": {"effects", "instrument", "intervals", "probes", "profiles", "recipes", "speaker_labels", "store",
                     "voices"},
    "contrasts": {"confounds", "crossing", "effects", "held_fixed", "intervals", "power", "relabelling", "voices"},
    "trials": {"contrasts", "crossing", "effects", "intervals", "profiles", "recipes", "relabelling", "speaker_labels",
               "store", "voices"},
    "figures_of_voices": {"figures"},
    "figures_of_clusters": {"figures"},  # the same inks
    "figures_of_classes": {"figures"},
}  # fmt: skip


def faults(path: Path) -> list[str]:
    """Everything in which a notebook departs from the skeleton."""
    text = path.read_text(encoding="utf-8")
    cells = jupytext.reads(text, fmt="py:percent").cells
    return [
        *_opening(path, cells),
        *_parameters(cells),
        *_needed(cells),
        *_measures(text, cells),
    ]


def _opening(path, cells):
    first = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    title = re.match(r"# (\d+) · (.+)", first)
    if not title:
        yield "must open with a markdown cell `# N · question?`"
    elif int(title[1]) != int(path.stem[:2]):
        yield f"the title says {title[1]}, the file {path.stem[:2]}"
    if title and not title[2].rstrip().endswith("?"):
        yield "the title must be a question"
    if not re.search(r"^> \S", first, re.M):
        yield "no answer in a blockquote under the title"
    for line in OPENING:
        if not re.search(rf"^\*\*{line}\*\*", first, re.M):
            yield f"no line **{line}**"
    if len(re.findall(r"^# ", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)) > 1:
        yield "more than one title"


def _parameters(cells):
    tagged = [cell for cell in cells if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells tagged parameters"
        return
    lines = ast.parse(tagged[0].source).body
    names = [
        line.targets[0].id for line in lines if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    ]
    if len(names) != len(lines) or not all(_literal(line.value) for line in lines if isinstance(line, ast.Assign)):
        yield "the parameters cell must hold literals only"
    if names[:2] != ["profile", "seed"]:
        yield "the parameters must start with profile and seed"
    for line in tagged[0].source.splitlines():
        if line.strip() and "#" not in line:
            yield f"no comment says what `{line}` takes"


def _needed(cells):
    for number, cell in enumerate(cells, 1):
        if _tags(cell) - TAGS:
            yield f"cell {number} has tags that nothing reads: {', '.join(sorted(_tags(cell) - TAGS))}"
    order = [
        tag for cell in cells for tag in ("parameters", "setup", "nbval-check-output", "save") if tag in _tags(cell)
    ]
    said = 'print(f"profile {run.name}, seed {seed}")'
    if said not in "".join(cell.source for cell in cells if "setup" in _tags(cell)):
        yield f"the cell setup must end with {said}: without tags other parameters than those given are used"
    if list(dict.fromkeys(order)) != ["parameters", "setup", "nbval-check-output", "save"]:
        yield f"the cells parameters, setup, nbval-check-output, save must come in this order, got {order}"
    checks = "\n".join(cell.source for cell in cells if "checks" in _tags(cell))
    if "assert " not in checks:
        yield "no cell tagged checks that asserts something"
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if '<aside class="doubt">' not in prose:
        yield 'no <aside class="doubt">: what would change your mind?'
    if cells[-1].cell_type != "markdown":
        yield "must close with what was found, what was dropped, and what is next"


def _measures(text, cells):
    code = [[line for line in c.source.splitlines() if line.strip()] for c in cells if c.cell_type == "code"]
    read = [[line for line in c.source.splitlines() if line.strip()] for c in cells
            if c.cell_type == "code" and "checks" not in _tags(c)]  # fmt: skip
    words = sum(len(re.findall(r"\w+", c.source)) for c in cells if c.cell_type == "markdown")
    if not 12 <= len(code) <= 30:
        yield f"{len(code)} code cells; 12 to 30 can be followed"
    for lines in code:
        if len(lines) > 25:
            yield f"a cell of {len(lines)} lines ({lines[0]!r}); 25 at most"
    median = statistics.median(map(len, code)) if code else 0
    if median > 12:
        yield f"the median cell has {median:.0f} lines; 12 at most"
    if words < 4.5 * sum(map(len, read)):
        yield f"{words} words for {sum(map(len, read))} lines of code; 4.5 a line at least"
    if len(text.encode()) > 32_000:
        yield f"{len(text.encode()):,} bytes; 32,000 at most"


def _tags(cell):
    return set(cell.metadata.get("tags", []))


def _literal(value):
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_follows_the_skeleton(path):
    assert faults(path) == []


def test_no_two_notebooks_have_one_number():
    numbers = [int(path.stem[:2]) for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    assert NOTEBOOKS


@pytest.mark.parametrize(
    "old, new, fault",
    [
        (r"^# # \d+ ", "# # 77 ", "the title says 77"),
        (r"^# # (.+)\?$", r"# # \1.", "must be a question"),
        (r"^# >.*$", "#", "no answer in a blockquote"),
        (r"\*\*You need\*\*", "You need", r"no line \*\*You need"),
        (r"^seed = 0", "seed = int(0)", "literals only"),
        (r"^(profile = .*)\n(seed = .*)$", r"\2\n\1", "start with profile and seed"),
        (r'^# %% tags=\["checks"\]', '# %% tags=["chekcs"]', "tags that nothing reads: chekcs"),
        (r'^# %% tags=\["save"\]', "# %%", "parameters, setup, nbval-check-output, save"),
        (r"aside class=.doubt", "aside class='sure", "what would change your mind"),
        (r"^import pandas as pd$", "\n".join(f"a{i} = 1" for i in range(26)), "25 at most"),
        (r"\Z", "\n\n# %%\n1\n" * 20, "12 to 30 can be followed"),
        (r"^# [^#>%*<|].*$", "#", "words for"),
        (r"\Z", "\n# " + "x" * 32_000, "32,000 at most"),
    ],
)
def test_each_departure_is_noticed(tmp_path, old, new, fault):
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    broken = re.sub(old, lambda found: found.expand(new.replace("\n", "\\n")), text, flags=re.M)
    assert broken != text
    path = tmp_path / NOTEBOOKS[0].name
    path.write_text(broken, encoding="utf-8")
    assert any(re.search(fault, said) for said in faults(path)), faults(path)


# --- who imports whom


def siblings(source: str) -> set[str]:
    """The modules of this package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("whisper_sae." if node.level else "") + (node.module or "")
            found |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in found if name.split(".")[0] == "whisper_sae"]
    return {part[1] if len(part) > 1 else part[0] for part in parts} - {"__version__"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_leaves_import_no_sibling(name):
    imported = siblings(MODULES[name].read_text(encoding="utf-8"))
    assert imported <= MAY_IMPORT.get(name, set()) | ANYONE, f"{name} imports {', '.join(sorted(imported))}"


@pytest.mark.parametrize(
    "line",
    ["from whisper_sae import sae", "from . import sae", "from .sae import SAE", "import whisper_sae.sae",
     "from whisper_sae.sae import SAE", "def f():\n    from whisper_sae import sae"],
)  # fmt: skip
def test_every_way_to_import_a_sibling_is_seen(line):
    assert siblings(line) == {"sae"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_says_why_it_exists(name):
    assert len(ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or "") > 40


def test_nothing_imports_a_notebook():
    for path in [*MODULES.values(), *NOTEBOOKS]:
        assert not re.search(r"^\s*(from|import) notebooks", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.slow
def test_importing_does_no_work():
    """Importing every module prints nothing, writes nothing, opens no socket and leaves random states alone."""
    code = """
import builtins, os, socket, sys
import numpy as np, random, torch
import matplotlib.pyplot, papermill, jupytext, nbconvert.exporters, transformers, pandas, scipy, sklearn.linear_model
states = repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()
def watch(event, details):
    if event == "socket.connect" or (event == "open" and isinstance(details[1], str) and set(details[1]) & set("wax+")):
        if "__pycache__" not in str(details[0]):
            print(event, details)
sys.addaudithook(watch)
for name in sys.argv[1:]:
    __import__("whisper_sae." + name)
assert "dask" not in sys.modules and "distributed" not in sys.modules  # only where there is a cluster
assert states == (repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist())
"""
    names = sorted(set(MODULES) - {"__main__"})
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=PROJECT, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
