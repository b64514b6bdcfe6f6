"""The text of a sweep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kleinkit.report.sweep import MOST_VALUES, label, parse_values


@pytest.mark.parametrize(
    "text, values",
    [
        ("1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 50, 100", (1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 50, 100)),
        ("1:10:1", range(1, 11)),
        ("1:4", (1, 2, 3, 4)),
        ("4:1", (4, 3, 2, 1)),
        ("10:1:-3", (10, 7, 4, 1)),
        ("1:10:4", (1, 5, 9)),
        ("3:3", (3,)),
        (" 1 , 2.5,\n0 : 1 : .5,, -2e1 ,", (1, 2.5, 0, 0.5, 1, -20)),
        ("2, 2, 1:2", (2, 2, 1, 2)),
    ],
)
def test_values(text, values):
    assert parse_values(text) == tuple(values)


@given(st.integers(-50, 50), st.integers(1, 200), st.sampled_from([0.1, 0.05, 0.3, 2.5, 7]))
def test_a_range_meets_its_end_whatever_floating_point_says(start, count, step):
    end = round(start + count * step, 6)
    np.testing.assert_allclose(parse_values(f"{start}:{end}:{step}"), np.linspace(start, end, count + 1), atol=1e-9)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "Expected `values` to be numbers or ranges (such as `1, 2.5, 4:10:2`), but got ''."),
        (" , ", "Expected `values` to be numbers or ranges (such as `1, 2.5, 4:10:2`), but got ' , '."),
        ("1, two", "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got 'two'."),
        ("1, nan", "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got 'nan'."),
        ("1e999", "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got '1e999'."),
        ("1:inf", "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got 'inf'."),
        ("1:", "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got ''."),
        ("1:2:3:4", "Expected `values` to be ranges of the form `start:end` or `start:end:step`, but got '1:2:3:4'."),
        (
            "1:10:0",
            "Expected `values` to be ranges whose step leads from start to end (such as `1:10:1` or `10:1:-1`), but got "
            "'1:10:0'.",
        ),
        (
            "10:1:1",
            "Expected `values` to be ranges whose step leads from start to end (such as `1:10:1` or `10:1:-1`), but got "
            "'10:1:1'.",
        ),
        ("1:1e308:1e-308", "Expected `values` to be at most 256 numbers, but got '1:1e308:1e-308'."),
        (2, "Expected `values` to be numbers or ranges (such as `1, 2.5, 4:10:2`), but got 2."),
        (None, "Expected `values` to be numbers or ranges (such as `1, 2.5, 4:10:2`), but got None."),
        ("1:257", "Expected `values` to be at most 256 numbers, but got '1:257'."),
    ],
)
def test_what_does_not_fit(text, sentence):
    with pytest.raises(ValueError) as error:
        parse_values(text)
    assert str(error.value) == sentence


def test_at_most_256_values():
    assert len(parse_values(f"1:{MOST_VALUES}")) == MOST_VALUES
    with pytest.raises(ValueError, match="at most 256 numbers"):
        parse_values("1," * (MOST_VALUES + 1))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_label_is_the_number(value):
    assert float(label(value)) == value


def test_labels_are_short():
    assert [label(value) for value in parse_values("1, 0.5, 100, -0, 0:0.3:0.1")] == [
        "1",
        "0.5",
        "100",
        "0",
        "0",
        "0.1",
        "0.2",
        "0.3",
    ]
