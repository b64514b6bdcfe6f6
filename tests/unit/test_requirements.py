"""ComfyUI-Manager installs requirements.txt, pip and the registry read pyproject.toml."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_both_name_the_same():
    [listed] = re.findall(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r'"([^"]+)"', listed) == (ROOT / "requirements.txt").read_text("utf-8").split()


@pytest.mark.parametrize("path", ["requirements.txt", "tests/requirements.txt"])
def test_every_one_has_a_lower_and_an_upper_bound(path):
    lines = (ROOT / path).read_text("utf-8").splitlines()
    assert lines and all(re.fullmatch(r"[\w.-]+>=\d+(\.\d+)*,<\d+(\.\d+)*", line) for line in lines)
