"""The values of a sweep, written as text."""

import math
from decimal import Decimal

from ..checks import expected

MOST_VALUES = 256
EXAMPLE = "such as `1, 2.5, 4:10:2`"


def parse_values(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "1, 2.5, 4:10:2", in its order.

    Args:
        text: numbers and ranges, between commas or on lines. A range `start:end:step` counts from `start` to `end`; `end` is
            among the values where a step meets it. A range `start:end` has steps of 1 towards `end`.
    Returns:
        1 to 256 floats.
    Raises:
        ValueError: the text has another form, a number is not finite, or there are too many.
    """
    if not isinstance(text, str):
        raise expected("values", f"numbers or ranges ({EXAMPLE})", text)
    values = []
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        values += _range(part) if ":" in part else [float(_number(part))]
        if len(values) > MOST_VALUES:
            raise expected("values", f"at most {MOST_VALUES} numbers", text)
    if not values:
        raise expected("values", f"numbers or ranges ({EXAMPLE})", text)
    return tuple(values)


def _number(text: str) -> Decimal:
    """A finite decimal number. It is exact, so that 0:1:0.1 meets 0.3 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise expected("values", f"finite numbers or ranges ({EXAMPLE})", text)
    # Adding 0.0 takes the sign from a zero; repr keeps the exponent within that of a float.
    return Decimal(repr(value + 0.0))


def _range(text: str) -> list[float]:
    numbers = [_number(part) for part in text.split(":")]
    if len(numbers) > 3:
        raise expected("values", "ranges of the form `start:end` or `start:end:step`", text)
    start, end, *step = numbers
    step = step[0] if step else Decimal(1 if start <= end else -1)
    if step == 0 or (end - start) * step < 0:
        raise expected("values", "ranges whose step leads from start to end (such as `1:10:1` or `10:1:-1`)", text)
    steps = (end - start) / step
    if steps >= MOST_VALUES:
        raise expected("values", f"at most {MOST_VALUES} numbers", text)
    return [float(start + i * step) for i in range(int(steps) + 1)]


def label(value: float) -> str:
    """The shortest text that is exactly this number: "1", "0.5"."""
    return repr(value).removesuffix(".0")
