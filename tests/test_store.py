"""A result is found by what it is made of, made once, and never half-written."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import cache, code_hash
from whisper_sae.cache import NotMade, Recipe

# ---------------------------------------------------------------------------------------------------- keys

CODE = """
'''What this is for.'''
import math

def area(r):
    '''Of a circle.'''
    return math.pi * r**2  # not r * 2

class Square:
    '''Four sides.'''
    side = 1
"""
SAME_CODE = {
    "no comment": CODE.replace("  # not r * 2", ""),
    "another comment": CODE.replace("# not", "# certainly not"),
    "docstrings of all three": CODE.replace("this is", "it is").replace("Of a", "Of any").replace("Four", "4"),
    "no docstring": CODE.replace("    '''Of a circle.'''\n", ""),
    "layout": CODE.replace("(r):", "(\n    r\n):").replace("math.pi * r**2", "(math.pi\n            * r ** 2)"),
}
OTHER_CODE = {
    "constant": CODE.replace("r**2", "r**3"),
    "name": CODE.replace("area", "surface"),
    "default": CODE.replace("(r)", "(r=1)"),
    "class attribute": CODE.replace("side = 1", "side = 2"),
    "string that is no docstring": CODE + "TEXT = 'x'\n",
}


@pytest.fixture
def module(tmp_path):
    """Imports source text as a module: `module(text)`."""

    def load(text: str):
        folder = tmp_path / f"code{len(list(tmp_path.glob('code*')))}"
        folder.mkdir()
        (folder / "shape.py").write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("shape", folder / "shape.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    return load


def recipe(make=None, name="thing", params=None, **more) -> Recipe:
    return Recipe(name, make or (lambda folder: None), params or {}, **more)


@pytest.mark.parametrize("change", SAME_CODE)
def test_key_ignores_words_about_code(module, change):
    assert SAME_CODE[change] != CODE
    before, after = module(CODE), module(SAME_CODE[change])
    assert recipe(code=(before,)).key == recipe(code=(after,)).key
    assert recipe(code=(before.area,)).key == recipe(code=(after.area,)).key


@pytest.mark.parametrize("change", OTHER_CODE)
def test_key_changes_with_code(module, change):
    assert recipe(code=(module(CODE),)).key != recipe(code=(module(OTHER_CODE[change]),)).key


def test_key_of_a_function_ignores_its_neighbours(module):
    before, after = module(CODE), module(OTHER_CODE["class attribute"])
    assert recipe(code=(before.area,)).key == recipe(code=(after.area,)).key


def test_functions_of_one_name_in_two_modules_both_count(module):
    one, other = module(CODE), module("def area(a, b):\n    return a * b\n")
    other.area.__module__ = "rectangle"
    keys = {recipe(code=code).key for code in [(one.area,), (other.area,), (one.area, other.area)]}
    assert len(keys) == 3


def test_key_changes_with_name_and_needs():
    plain = recipe()
    assert recipe(name="other").key != plain.key
    assert recipe(needs={"thing": plain}).key != plain.key
    assert recipe(needs={"thing": plain}).key != recipe(needs={"other": plain}).key
    assert recipe(needs={"thing": recipe(params={"a": 1})}).key != recipe(needs={"thing": recipe(params={"a": 2})}).key


def test_key_ignores_how_it_is_called():
    assert recipe(by="make report", label="a thing").key == recipe().key != recipe(make=print).key


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, -1.5]) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
PARAMS = st.dictionaries(st.text("ab", max_size=2), JSON, max_size=3)


def backwards(value):
    """The same JSON, with every object written in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(inner) for key, inner in reversed(value.items())}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


def same(one, other) -> bool:
    """Equal as JSON: 1, 1.0 and true are three different things, the order of an object's fields is none."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(PARAMS, PARAMS)
def test_keys_are_equal_when_and_only_when_params_are(one, other):
    assert recipe(params=one).key == recipe(params=backwards(one)).key
    assert recipe(params=one).key == recipe(params=json.loads(json.dumps(one))).key
    assert (recipe(params=one).key == recipe(params=other).key) == same(one, other)


# ------------------------------------------------------------------------------------------- making and finding


def squares(folder):
    (folder / "deep").mkdir(exist_ok=True)
    np.save(folder / "deep" / "squares.npy", np.arange(10) ** 2)
    pd.DataFrame({"word": ["NA", "", "null"], "n": [1, 2, 3]}).to_csv(folder / "words.csv", index=False)
    return {"count": 10}


def test_manifest_says_what_it_was_made_of(data, module):
    code = module(CODE)
    first = recipe(squares, "first", {"b": 1, "a": [2]})
    second = recipe(
        lambda folder, first: squares(folder), "second", {"c": 3}, code=(code.area,), needs={"first": first}
    )
    cache.make(first)
    step = cache.make(second)
    assert step.path == data / "steps" / "second" / second.key
    assert json.loads((step.path / "manifest.json").read_text()) == step.manifest
    assert step.manifest["step"] == "second"
    assert step.manifest["key"] == step.key == second.key
    assert step.manifest["params"] == {"c": 3}
    assert step.manifest["code"] == code_hash.of(second.make, code.area)
    assert {"shape.area", f"{__name__}.squares"} < set(step.manifest["code"])
    assert step.manifest["needs"] == {"first": first.key}
    assert step.facts == {"count": 10}
    assert step.manifest["seconds"] >= 0
    assert step.manifest["versions"]["numpy"] == np.__version__
    written = {path.relative_to(step.path).as_posix() for path in step.path.rglob("*") if path.is_file()}
    assert set(step.manifest["files"]) == written - {"manifest.json"} == {"deep/squares.npy", "words.csv"}
    for name, digest in step.manifest["files"].items():
        assert digest == cache.file_digest(step.path / name)
    assert cache.file_digest(step.path / "words.csv") != step.manifest["files"]["deep/squares.npy"]


def test_a_file_of_the_maker_that_is_called_manifest_is_hashed_too(data):
    def nested(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "manifest.json").write_text("{}")

    assert list(cache.make(recipe(nested)).manifest["files"]) == ["inner/manifest.json"]


def test_made_once(data):
    calls = []

    def count(folder):
        calls.append(folder)
        return {"call": len(calls)}

    assert cache.make(recipe(count)).facts == {"call": 1}
    assert cache.make(recipe(count)).facts == {"call": 1}
    assert cache.need(recipe(count)).facts == {"call": 1}
    assert cache.make(recipe(count, params={"other": 1})).facts == {"call": 2}


def test_a_maker_that_fails_leaves_no_result(data):
    def fail(folder):
        (folder / "half.txt").write_text("ha")
        raise ZeroDivisionError("on the way")

    with pytest.raises(ZeroDivisionError, match="on the way"):
        cache.make(recipe(fail))
    with pytest.raises(NotMade):
        cache.need(recipe(fail))
    assert [path.name for path in (data / "steps" / "thing").iterdir() if not path.name.startswith(".")] == []
    step = cache.make(recipe(squares))
    assert step.array("deep/squares.npy")[3] == 9
    step.verify()


def test_the_next_run_goes_on_from_what_was_left(data):
    def twice(folder):
        (folder / "first.txt").touch()
        if not (folder / "second.txt").exists():
            (folder / "second.txt").touch()
            raise InterruptedError
        return {"resumed": True}

    with pytest.raises(InterruptedError):
        cache.make(recipe(twice))
    step = cache.make(recipe(twice))
    assert step.facts == {"resumed": True}
    assert set(step.manifest["files"]) == {"first.txt", "second.txt"}


def test_a_result_gets_its_name_in_one_rename(data):
    """Not by a copy, which a reader could meet half-way."""
    step = cache.make(recipe(lambda folder: {"inode": folder.stat().st_ino, "name": folder.name}))
    assert step.path.stat().st_ino == step.facts["inode"]
    assert step.path.name == step.key != step.facts["name"]
    assert step.facts["name"].startswith(".")


def test_what_is_missing_is_named_with_the_command_that_makes_it(data):
    upstream = recipe(squares, by="python -m whisper_sae demo 01", label="activations")
    with pytest.raises(NotMade) as said:
        cache.need(upstream)
    assert "python -m whisper_sae demo 01" in str(said.value)
    assert "'activations'" in str(said.value)
    assert upstream.key in str(said.value)
    assert "\n" not in str(said.value)
    with pytest.raises(NotMade, match="demo 01"):
        cache.make(recipe(lambda folder, thing: None, "later", needs={"thing": upstream}))
    assert not (data / "steps" / "later").exists()


def test_a_result_can_be_asked_whether_it_is_what_was_written(data):
    step = cache.make(recipe(squares))
    step.verify()
    path = step.path / "deep" / "squares.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"deep/squares\.npy: not what was written") as said:
        step.verify()
    assert "\n" not in str(said.value)
    path.unlink()
    with pytest.raises(ValueError, match=r"squares\.npy"):
        step.verify()


def test_a_manifest_that_cannot_be_read_is_named(data):
    step = cache.make(recipe(squares))
    (step.path / "manifest.json").write_text('{"step": "thi')
    with pytest.raises(ValueError, match=r"manifest\.json: .*delete") as said:
        cache.make(recipe(squares))
    assert "\n" not in str(said.value)


def test_arrays_are_mapped_and_cannot_be_written_to(data):
    array = cache.make(recipe(squares)).array("deep/squares.npy")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert array.tolist() == [n * n for n in range(10)]


def test_words_that_look_like_nothing_stay_words(data):
    table = cache.make(recipe(squares)).table("words.csv")
    assert table.word.tolist() == ["NA", "", "null"]
    assert table.n.tolist() == [1, 2, 3]


def test_no_pickle_is_ever_unpacked(data):
    def pickled(folder):
        np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match="Python objects"):
        cache.make(recipe(pickled)).array("objects.npy")


# ---------------------------------------------------------------------------------------- other processes

TWO = """
    import sys, time
    from pathlib import Path
    from whisper_sae import cache

    log, gate = map(Path, sys.argv[1:])

    def slowly(folder):
        with open(log, "a") as file:
            file.write("made\\n")
        time.sleep(0.5)
        (folder / "answer.txt").write_text("42")
        return {"by": sys.argv[0]}

    print("ready", flush=True)
    while not gate.exists():
        time.sleep(0.005)
    step = cache.make(cache.Recipe("slow", slowly, {}))
    step.verify()
    print(step.path, (step.path / "answer.txt").read_text(), flush=True)
"""

FULL = """
    import os, sys
    import numpy as np, torch
    from safetensors.torch import save_file
    from whisper_sae import cache

    small = cache.Recipe("small", lambda folder: np.save(folder / "a.npy", np.arange(1000)), {})
    print(cache.make(small).key)
    big = np.zeros(300_000)  # 2.4 MB
    writers = {
        "numpy": lambda folder: np.save(folder / "b.npy", big),
        "torch": lambda folder: torch.save({"b": torch.from_numpy(big)}, folder / "b.pt"),
        "safetensors": lambda folder: save_file({"b": torch.from_numpy(big)}, folder / "b.safetensors"),
        "text": lambda folder: (folder / "b.txt").write_text("b" * 2_400_000) and None,
    }
    for name, write in writers.items():
        try:
            cache.make(cache.Recipe(name, write, {}))
            print("written?")
        except OSError as error:
            print(error)
        for path in (cache.root() / "steps" / name).rglob("b.*"):
            path.unlink()
    step = cache.need(small)
    step.verify()
    print(step.array("a.npy").sum())
    try:
        def unrelated(folder):
            raise ValueError("nothing to do with the disk")
        cache.make(cache.Recipe("unrelated", unrelated, {}))
    except ValueError as error:
        print(error)
"""


def script(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def test_two_processes_that_ask_at_once_make_it_once(data, tmp_path):
    asks = [sys.executable, script(tmp_path / "two.py", TWO), str(tmp_path / "log"), str(tmp_path / "gate")]
    both = [subprocess.Popen(asks, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    (tmp_path / "gate").touch()
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
    assert told[0] == told[1]
    assert told[0].endswith(" 42\n")


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_finished(tmp_path):
    """On a real file system of 1 MiB, in a mount namespace that only the child sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs '{disk}'"
    alone = next(
        (
            flags
            for flags in ("-m", "-rm")
            if subprocess.run(["unshare", flags, "sh", "-c", mount], capture_output=True).returncode == 0
        ),
        None,
    )
    if alone is None:
        pytest.skip("this machine does not let us mount a small file system (unshare, mount)")
    run = f"{mount} && exec '{sys.executable}' '{script(tmp_path / 'full.py', FULL)}'"
    told = subprocess.run(
        ["unshare", alone, "sh", "-c", run],
        env=os.environ | {"WHISPER_SAE_DATA": str(disk)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    key, *failures, total, unrelated = told.stdout.splitlines()
    assert re.fullmatch("[0-9a-f]{12}", key)
    assert len(failures) == 4  # so each of them is one line
    for name, line in zip(("numpy", "torch", "safetensors", "text"), failures, strict=True):
        assert f"no space left on the device while making '{name}' in {disk}/steps/{name}/" in line
        assert "WHISPER_SAE_DATA" in line
    assert total == str(sum(range(1000)))
    assert unrelated == "nothing to do with the disk"
