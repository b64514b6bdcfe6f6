"""What the editor shows of a sweep before it runs."""

from ..checks import expected, one_of
from ..report.sweep import label, parse_values


def preview(settings: dict) -> dict:
    """The values of `KleinKitSweep`.

    Args:
        settings: `values`, the text as typed.
    Returns:
        dict: `labels`, the values as the node's output `label` has them.
    Raises:
        ValueError: no such setting, or a text that is no sweep.
    """
    for name in settings:
        one_of("setting", ("values",), name)
    values = settings.get("values")
    if not isinstance(values, str):
        raise expected("values", "a text", values)
    return {"labels": [label(value) for value in parse_values(values)]}
