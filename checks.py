"""Range checks, and the wording of errors about inputs, for every folder."""

import functools
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np

LONGEST_VALUE = 200
WHOLE = int, np.integer


def sentence(name: str, fits: str, but: str) -> str:
    """The sentence for an input that does not fit, where words say what it is instead."""
    return f"Expected `{name}` to be {fits}, but {but}."


def expected(name: str, fits: str, given: object) -> ValueError:
    """The error for an input that does not fit: `raise expected("start", "between 0.0 and 1.0", 1.2)`."""
    return ValueError(sentence(name, fits, f"got {shown(given)}"))


def shown(value: object) -> str:
    """A value as an error shows it: not at any length."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, also one of numpy. Python counts True and False among them, and nobody means that."""
    return isinstance(value, (*WHOLE, float, np.floating)) and not isinstance(value, bool)


def number(name: str, value: object, low: float, high: float) -> None:
    """Check that a number lies between two limits; limits of type int ask for a whole number.

    Raises:
        ValueError: it does not, or is no finite number.
    """
    whole = isinstance(low, int)
    if not (is_number(value) and (isinstance(value, WHOLE) or not whole) and low <= value <= high):
        raise expected(name, f"a {'whole ' if whole else ''}number between {low} and {high}", value)


def one_of(name: str, choices: Collection[str], value: object) -> None:
    """Check that a value is one of the choices.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, str) and value in choices):
        raise expected(name, f"one of {', '.join(choices)}" if choices else "absent", value)


def numbers_of(text: str) -> tuple[float, ...]:
    """The numbers between commas; as in a list of layers, nothing between two commas is nothing.

    Raises:
        ValueError, AttributeError: the text is not of that form, or no text.
    """
    return tuple(float(part) for part in text.split(",") if part.strip())


def first_step(share: float, steps: int) -> int:
    """The first step i of n with share·n ≤ i."""
    # 0.07 · 100 is 7.000000000000001 in floating point; the step that is meant is 7.
    return math.ceil(round(share * steps, 9))


def steps_in_range(start: float, end: float, steps: int) -> range:
    """The steps i of a run with start·n ≤ i < end·n.

    Args:
        start, end: shares of the run, 0.0 ≤ start < end ≤ 1.0.
        steps: n, the run's number of steps.
    Returns:
        `range` of step indices.
    Raises:
        ValueError: the shares are not in order, or not between 0 and 1.
    """
    if not (is_number(start) and 0.0 <= start <= 1.0):
        raise expected("start", "between 0.0 and 1.0", start)
    if not (is_number(end) and start < end <= 1.0):
        raise expected("end", f"above `start` ({start}) and at most 1.0", end)
    return range(first_step(start, steps), first_step(end, steps))


def of_node(title: str, error: ValueError) -> ValueError:
    """The error with the title of the node that it comes from, as it stands on the canvas, in front."""
    # Its traceback alone: ComfyUI logs it.
    return ValueError(f"{title}: {error}").with_traceback(error.__traceback__)


@contextmanager
def in_node(title: str) -> Iterator[None]:
    """A `ValueError` inside begins with the node's title."""
    try:
        yield
    except ValueError as error:
        raise of_node(title, error) from None


def names_itself(node: type[Any]) -> type[Any]:
    """Class decorator: a `ValueError` of the node's `execute` begins with the node's title."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def named(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(cls, *args, **kwargs)
        except ValueError as error:
            raise of_node(node.define_schema().display_name, error) from None

    node.execute = classmethod(named)
    return node


def brought(name: str, value: Any) -> dict[str, Any]:
    """What a DynamicCombo hands over: its choice by its own name, and the inputs that the choice brings.

    Through a link comes the choice alone; what it would bring has its defaults.
    """
    return dict(value) if isinstance(value, dict) else {name: value}


def no_choice(name: str, choices: Iterable[str]) -> str:
    """What `validate_inputs` answers when a DynamicCombo is missing in its arguments.

    ComfyUI does not check one: of a value that is not in the list, nothing reaches the node.
    """
    return sentence(name, f"one of {', '.join(choices)}", "got none of them")
