"""A result's key covers what its code reads: functions, classes and constants, followed through the package."""

import dataclasses
import functools
import importlib
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from whisper_sae import code_hash

ABOVE = """
import functools
from some_package import beneath
from some_package.beneath import SCALE as FACTOR, helper

class Base:
    def size(self): return beneath.LIMIT

class Thing(Base):
    kinds = {"a": helper}
    @property
    def doubled(self): return beneath.twice(2)
    @staticmethod
    def still(): return beneath.STILL

@functools.cache
def remembered(): return beneath.remembered_too()

def make(folder, far=beneath.DEFAULT):
    def inside(x): return x * FACTOR
    from some_package.beneath import late
    return inside(1), Thing(), remembered(), [helper(one) for one in (1, 2)], late()
"""
BENEATH = """
import functools
SCALE, LIMIT, STILL, DEFAULT, DEEP, UNREAD = 1, 2, 3, 4, 5, 6
TABLE = {"deep": [DEEP, (1.5, "x")], "by": max}

def helper(x): return deeper(x)
def deeper(x): return TABLE["deep"]
def twice(x): return 2 * x
def remembered_too(): return 1
def late(): return 1
def unread(): return UNREAD
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(beneath)` writes, loads and gives the module above it."""
    monkeypatch.syspath_prepend(tmp_path)
    home = tmp_path / "some_package"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "above.py").write_text(ABOVE)

    def load(beneath: str = BENEATH):
        (home / "beneath.py").write_text(beneath)
        for name in [name for name in sys.modules if name.startswith("some_package")]:
            del sys.modules[name]
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        return importlib.import_module("some_package.above")

    load.folder = home
    return load


def test_what_is_read_is_found_and_nothing_else(package):
    found = {name.removeprefix("some_package.") for name in code_hash.of(package().make)}
    functions = {"above.make", "above.Thing", "above.Base", "above.remembered"}
    beneath = {"helper", "deeper", "twice", "remembered_too", "late", "LIMIT", "STILL", "TABLE"}
    assert found == functions | {f"beneath.{name}" for name in beneath} | {"above.FACTOR"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SCALE, LIMIT", "LIMIT, SCALE"), ("STILL, DEFAULT", "DEFAULT, STILL"), ("= 1, 2, 3, 4, 5", "= 1, 2, 3, 9, 5"),
        ('(1.5, "x")', '(1.5, "y")'), ('"by": max', '"by": min'), ("return 2 * x", "return 3 * x"),
        ("def remembered_too(): return 1", "def remembered_too(): return 2"),
        ("def late(): return 1", "def late(): return 2"),
        ("return deeper(x)", "return deeper(x + 1)"), ("def deeper(x)", "def deeper(x, y=0)"),
    ],
)  # fmt: skip
def test_another_constant_or_helper_is_another_digest(package, before, after):
    first = code_hash.of(package().make)
    assert before in BENEATH and code_hash.of(package(BENEATH.replace(before, after)).make) != first


@pytest.mark.parametrize(
    ("before", "after"),
    [("def unread(): return UNREAD", "def unread(): return 0"), ("5, 6", "5, 7"), ("import functools", "import math"),
     ("def twice(x): return 2 * x", "def twice(x):\n    'Twice.'\n    # that\n    return (2\n        * x)"),
     ("def helper(x)", "def helper(x: int) -> int")],
)  # fmt: skip
def test_what_is_not_read_and_words_change_nothing(package, before, after):
    first = code_hash.of(package().make)
    assert before in BENEATH and code_hash.of(package(BENEATH.replace(before, after)).make) == first


def test_what_runs_counts_not_what_lies_on_disk(package):
    above = package()
    first = code_hash.of(above.make)
    (package.folder / "beneath.py").write_text(BENEATH.replace("2 * x", "5 * x"))
    assert code_hash.of(above.make) == first
    assert code_hash.of(package(BENEATH.replace("2 * x", "5 * x")).make) != first


@dataclass(frozen=True)
class Settings:
    steps: int = 3


VALUES = [
    0, 0.0, True, None, "a", b"a", 1.5, (1, 2), [1, 2], {1, 2}, {"a": 1}, {"a": 2}, Path("x/y"), np.arange(3),
    np.arange(3.0), np.float32(1), torch.zeros(2), torch.ones(2), torch.float16, torch.bfloat16, Settings(),
    Settings(4), functools.partial(max, 1), functools.partial(max, 2), range(3), max, min, int,
]  # fmt: skip


def test_constants_are_told_apart_by_their_values():
    digests = set()
    for value in VALUES:
        namespace = {"__name__": __name__, "VALUE": value}
        function = types.FunctionType((lambda: VALUE).__code__, namespace)  # noqa: F821
        digests.add(repr(code_hash.of(function)))
    assert len(digests) == len(VALUES) - 3  # None and three builtins are as if nothing were read


def test_a_constant_without_a_value_is_named():
    function = types.FunctionType((lambda: VALUE).__code__, {"__name__": __name__, "VALUE": object()})  # noqa: F821
    with pytest.raises(code_hash.Unreadable, match=r"VALUE: a object is no constant whose value can be told"):
        code_hash.of(function)


def test_fields_of_a_dataclass_count():
    def made(**fields):
        return dataclasses.make_dataclass("Made", [(name, int, value) for name, value in fields.items()])

    def reading(cls):
        cls.__module__ = __name__
        return types.FunctionType((lambda: VALUE()).__code__, {"__name__": __name__, "VALUE": cls})  # noqa: F821

    same, other, more = made(a=1), made(a=2), made(a=1, b=2)
    assert len({repr(code_hash.of(reading(cls))) for cls in (same, made(a=1), other, more)}) == 3
    assert replace(Settings(), steps=4) == Settings(4)
