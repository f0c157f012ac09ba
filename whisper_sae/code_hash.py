"""What computes a result: digests of a function and of all code and constants that it reads, as they were loaded.

    code_hash.of(function)  # {"whisper_sae.sae.architectures.TopK": "5b1c…", "whisper_sae.stats.intervals.LEAST": …}

A function is its byte code, its defaults and what it refers to: functions, classes and constants of this package (and
of the function's own module), followed in turn. Byte code is what runs, so an edit of a file under a running process
changes nothing; comments, docstrings, annotations and line numbers are not in it. It differs between versions of
Python, and so do the digests. What libraries compute is not followed: the store records their versions.
"""

import dis
import enum
import functools
import hashlib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import PurePath

import numpy as np

HOME = __package__

APART = {
    "cache": "keeps results",
    "code_hash": "names them",
    "profiles": "says what is asked; that is in the parameters of each result",
    "report.results": "shows results",
    "explorer.messages": "words errors",
    "progress": "draws bars",
    "parallel": "spreads work, which is the same wherever it is done",
    "viz.display": "draws results",
    "model.package_index": "fetches models; their digests are in the parameters",
}
"""Modules that are not followed, and why no result depends on them."""

REMEMBERED = {
    "sae.kernels.BLOCK": "the size of this processor's cache: what is used at a time, from which no result follows",
}
"""Names that are not followed: what a process remembers, or how fast it works."""

COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


def _is_apart(name: str) -> bool:
    """Whether a name below the package lies in a module that is not followed."""
    return any(name == module or name.startswith(f"{module}.") for module in APART)


class Unreadable(TypeError):
    """A constant of a kind whose value cannot be told."""


def of(*parts) -> dict[str, str]:
    """{qualified name: twelve hexadecimal digits} of functions, classes or modules and of all that they read."""
    parts = [part.func if isinstance(part, functools.partial) else part for part in parts]
    homes = {HOME} | {_home(part) for part in parts}
    found, ahead = {}, [(_name(part), part) for part in parts]
    while ahead:
        name, thing = ahead.pop()
        if name not in found:
            described, read = _Reader(homes).described(thing, name)
            found[name] = hashlib.sha256(repr(described).encode()).hexdigest()[:12]
            ahead += read
    return dict(sorted(found.items()))


class _Reader:
    """Describes one thing by its own code or value; `read` gathers what it refers to."""

    def __init__(self, homes: set[str]):
        self.homes, self.read = homes, []

    def described(self, thing, name: str) -> tuple[object, list]:
        compiled, thing = self.value(getattr(thing, "targetoptions", None)), _plain(thing)  # numba's
        if inspect.ismodule(thing):
            own = [(f"{thing.__name__}.{each}", value) for each, value in vars(thing).items() if each[:2] != "__"]
            return thing.__name__, [one for one in own if self.is_followed(one[1], *one[:1], inside=thing.__name__)]
        kind = inspect.isclass(thing), inspect.isfunction(thing)
        try:
            what = {(True, False): self.of_class, (False, True): self.of_function}.get(kind, self.value)
            return (compiled, what(thing)), self.read
        except Unreadable as error:
            raise Unreadable(f"{name}: {error}") from None

    def of_function(self, function) -> object:
        self.read += self.references(function.__code__, function.__globals__, _closure(function))
        return _code(function.__code__), self.value([function.__defaults__, function.__kwdefaults__])

    def of_class(self, cls) -> object:
        described = [cls.__qualname__, getattr(cls, "_fields", ()), self.value(getattr(cls, "_field_defaults", {}))]
        self.read += [(_name(base), base) for base in cls.__mro__[1:] if self.is_followed(base, _name(base))]
        for name, value in sorted(vars(cls).items()):
            if function := _function(value):
                if function.__code__.co_filename != "<string>":  # dataclasses' own follows from the fields
                    described.append((name, self.of_function(function)))
            elif not (name.startswith(("__", "_abc_", "_field")) or inspect.isdatadescriptor(value)):
                described.append((name, self.value(value)))
        if is_dataclass(cls):
            described += [(each.name, self.value(_default(each))) for each in fields(cls)]
        return described

    def references(self, code: types.CodeType, known: dict, closure: dict) -> Iterator[tuple[str, object]]:
        """(name, thing) of the functions, classes, modules and constants that a code object reads."""
        for kind, name, *attributes in _names(code):
            holder = known.get("__name__")
            if kind == "import":
                thing = self.imported(name, *attributes)
            else:
                thing = closure[name] if kind == "free" and name in closure else known.get(name)
            where = f"{holder}.{name}"
            while attributes and inspect.ismodule(thing) and (self.is_ours(thing) or thing.__name__ == HOME):
                holder, name = thing.__name__, attributes.pop(0)
                where, thing = f"{holder}.{name}", getattr(thing, name, None)
            if kind == "free" and not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
                continue  # what a nested function was given; a result's parameters name it
            where = _name(thing) if hasattr(_plain(thing), "__qualname__") else where
            if self.is_followed(thing, where):
                yield where, thing
        for one in code.co_consts:
            if isinstance(one, types.CodeType):
                yield from self.references(one, known, closure)

    def imported(self, name: str, attribute: str):
        """What a function itself imports holds `attribute`, loaded if it is of ours: else the digest would depend on
        what else a process has done."""
        if name.partition(".")[0] in self.homes:
            module = importlib.import_module(name)
            if not hasattr(module, attribute):
                importlib.import_module(f"{name}.{attribute}")
            return module
        return sys.modules.get(name)

    def is_ours(self, thing) -> bool:
        module = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", None)
        if not isinstance(module, str) or module == HOME:
            return False
        home, _, rest = module.partition(".")
        return home in self.homes and not (home == HOME and _is_apart(rest))

    def is_followed(self, thing, where: str, inside: str = "") -> bool:
        """Whether it is of this package (and, `inside` a module, defined there), or a constant."""
        thing = _plain(thing)
        if where.removeprefix(HOME + ".") in REMEMBERED or thing is None:
            return False
        if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
            made = getattr(thing, "__annotations__", {}).get("return")
            elsewhere = inside and getattr(thing, "__module__", "") != inside
            return self.is_ours(thing) and not elsewhere and getattr(made, "__name__", made) != "Recipe"
        home, _, rest = where.partition(".")
        own = not callable(thing) or isinstance(thing, functools.partial) or self.is_ours(type(thing))
        return own and home in self.homes and not _is_apart(rest)

    def value(self, thing):
        """A constant by its value; what it holds of functions, classes and modules is read, too."""
        if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | enum.Enum):
            return repr(thing)
        if isinstance(thing, list | tuple):
            return type(thing).__name__, [self.value(one) for one in thing]
        if isinstance(thing, set | frozenset):
            return "set", sorted(repr(self.value(one)) for one in thing)
        if isinstance(thing, dict | types.MappingProxyType):
            return "dict", [(self.value(key), self.value(one)) for key, one in thing.items()]
        if isinstance(thing, PurePath):
            return "path", thing.name  # where the project lies is no matter
        if isinstance(thing, re.Pattern):
            return thing.pattern, thing.flags
        if isinstance(thing, np.ndarray):
            return thing.dtype.str, thing.shape, thing.tobytes()
        if isinstance(thing, _VALUES) or (type(thing).__module__ == "torch" and not callable(thing)):
            return repr(thing), getattr(thing, "tolist", tuple)()  # torch is not loaded for this
        if isinstance(thing, functools.partial):
            return "partial", self.value([thing.func, thing.args, thing.keywords])
        thing = _plain(thing)
        if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
            name = _name(thing)
            if self.is_followed(thing, name):
                self.read.append((name, thing))
            return name
        if is_dataclass(thing):
            return type(thing).__qualname__, [self.value(getattr(thing, each.name)) for each in fields(thing)]
        raise Unreadable(f"a {type(thing).__qualname__} is no constant whose value can be told")


_VALUES = (np.generic, np.dtype, range, slice, types.GenericAlias, types.UnionType)


def _code(code: types.CodeType) -> tuple:
    """A code object without its docstring, names of files and numbers of lines."""
    consts = list(code.co_consts)
    if consts and code.co_name not in COMPREHENSIONS and isinstance(consts[0], str):
        consts[0] = None
    consts = [_code(one) if isinstance(one, types.CodeType) else _constant(one) for one in consts]
    return code.co_code.hex(), consts, code.co_names, code.co_varnames, code.co_freevars


def _constant(one) -> str:
    return repr(sorted(map(repr, one))) if isinstance(one, frozenset) else repr(one)


@functools.cache
def _names(code: types.CodeType) -> tuple:
    """What a code object reads by name: (kind, name, attributes that are taken from it at once, …); kind is "global",
    "free" (of the function around it) or "import"."""
    kinds = {"LOAD_GLOBAL": "global", "LOAD_NAME": "global", "LOAD_DEREF": "free", "LOAD_CLASSDEREF": "free"}
    found, chain, imported = [], None, ""
    for step in dis.get_instructions(code):
        if step.opname in kinds:
            chain = [kinds[step.opname], step.argval]
            found.append(chain)
        elif step.opname == "IMPORT_NAME":
            imported, chain = step.argval, None
        elif step.opname == "IMPORT_FROM":
            found.append(["import", imported, step.argval])
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain.append(step.argval)
        else:
            chain = None
    return tuple(map(tuple, found))


def _closure(function) -> dict:
    """{name: value} of what a nested function reads of the functions around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # assigned later
            continue
    return found


def _function(value) -> Callable | None:
    """The function of an attribute of a class: itself, or that of a property, of a static, class or cached method."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = _plain(value.func if isinstance(value, functools.cached_property) else value)
    return value if inspect.isfunction(value) else None


def _default(field) -> list:
    """The default of a dataclass's field, if it has one."""
    return [one for one in (field.default, field.default_factory) if type(one).__name__ != "_MISSING_TYPE"]


def _plain(thing):
    """The function beneath what wraps it: a cache, numba's compiler."""
    while inner := (getattr(thing, "py_func", None) or getattr(thing, "__wrapped__", None)):
        thing = inner
    return thing


def _name(thing) -> str:
    thing = _plain(thing)
    return thing.__name__ if inspect.ismodule(thing) else f"{thing.__module__}.{thing.__qualname__}"


def _home(thing) -> str:
    return (thing.__name__ if inspect.ismodule(thing) else thing.__module__).partition(".")[0]
