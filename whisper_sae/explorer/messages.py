"""What a browser asks, read with distrust: every field has a type and bounds, and what nobody asked for is refused.

    told = Message({"feature": 30, "most": 20})
    number = told.whole("feature", 0, 511)
    most = told.whole("most", 1, 100, default=20)
    told.finish()                                   # ValueError where there is any other field

Everything raises ValueError, one line that names the field.
"""

import math
from collections.abc import Mapping, Sequence

LETTERS = 20_000
"""The longest text."""


class Message:
    """The fields of a message, each to be taken out once."""

    def __init__(self, given: Mapping):
        if not isinstance(given, Mapping):
            raise ValueError(f"a question must be an object with fields, got {type(given).__name__}")
        self.given = dict(given)

    def _take(self, name: str, default):
        value = self.given.pop(name, None)
        return default if value is None or value == "" else value

    def has(self, name: str) -> bool:
        return self.given.get(name) is not None

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from low to high, both included; without a default it has to be there."""
        value = self._take(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}: must be a whole number from {low:,} to {high:,}, got {_shown(value)}")
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, default: float | None = None):
        """A finite number from low to high, or the default, which may be None."""
        value = self._take(name, default)
        return None if value is None else number(name, value, low, high)

    def text(self, name: str, default: str = "", most: int = LETTERS) -> str:
        value = self._take(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{name}: must be text, got {_shown(value)}")
        if len(value) > most:
            raise ValueError(f"{name}: has {len(value):,} letters; at most {most:,} are kept")
        return value

    def flag(self, name: str) -> bool:
        value = self._take(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"{name}: must be true or false, got {_shown(value)}")
        return value

    def one_of(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name}: {_shown(value)} is not one of {', '.join(allowed)}")
        return value

    def inner(self, name: str) -> "Message":
        """A field that has fields of its own."""
        value = self.given.pop(name, None)
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: must be an object with fields, got {_shown(value)}")
        return Message(value)

    def finish(self) -> None:
        """ValueError if there is a field that nobody took out."""
        if self.given:
            raise ValueError(f"{next(iter(self.given))!s:.40}: no such field here")


def number(name: str, value, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high; ValueError, which names it, for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: must be a number, got {_shown(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name}: must be from {low:g} to {high:g}, got {_shown(value)}")
    return float(value)


def _shown(value) -> str:
    return "nothing" if value is None else f"{value!r:.60}"
