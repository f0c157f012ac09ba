"""What a browser asks is of the right type and within bounds, or it is refused by name."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae.explorer.messages import Message, number

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY = st.recursive(PLAIN, lambda x: st.lists(x) | st.dictionaries(st.text(), x))


@given(ANY)
def test_whatever_comes_is_within_bounds_or_refused(value):
    for read in (
        lambda: 0 <= Message({"n": value}).whole("n", 0, 9, default=3) <= 9,
        lambda: -1 <= Message({"n": value}).number("n", -1, 1, default=0.5) <= 1,
        lambda: len(Message({"n": value}).text("n", most=5)) <= 5,
        lambda: Message({"n": value}).flag("n") in (True, False),
        lambda: Message({"n": value}).one_of("n", ("a", "b"), "a") in ("a", "b"),
    ):
        try:
            assert read()
        except ValueError as error:
            assert str(error).startswith("n: ") and "\n" not in str(error)


@pytest.mark.parametrize("value", [True, 1.5, "1", math.nan, math.inf, -1, 10, None, [1], {}])
def test_what_is_no_whole_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="n: must be a whole number from 0 to 9"):
        Message({"n": value}).whole("n", 0, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "2", True, None])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="scale: must be a number"):
        number("scale", value)


def test_bounds_are_inside():
    assert Message({"n": 9.0}).whole("n", 0, 9) == 9 and Message({"n": 0}).whole("n", 0, 9) == 0
    assert number("n", 100, -2, 100) == 100 and Message({}).number("n") is None
    with pytest.raises(ValueError, match=r"n: must be from -2 to 100, got 100\.5"):
        number("n", 100.5, -2, 100)


def test_what_nobody_asked_for_is_refused():
    told = Message({"n": 1, "path": "/etc/passwd"})
    told.whole("n", 0, 9)
    with pytest.raises(ValueError, match="path: no such field here"):
        told.finish()
    with pytest.raises(ValueError, match="a question must be an object"):
        Message([1])
    with pytest.raises(ValueError, match="a: must be an object"):
        Message({"a": 3}).inner("a")
    assert json.dumps(Message({"a": {"b": 1}}).inner("a").given) == '{"b": 1}'
