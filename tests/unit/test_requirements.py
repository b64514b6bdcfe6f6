"""ComfyUI-Manager installs requirements.txt, pip and the registry read pyproject.toml."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def lines(path: str) -> list[str]:
    return (ROOT / path).read_text("utf-8").splitlines()


def test_both_name_the_same():
    [listed] = re.findall(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r'"([^"]+)"', listed) == lines("requirements.txt")


def test_the_users_environment_is_not_capped():
    """It is shared with ComfyUI and other packs, and ComfyUI itself caps neither matplotlib nor Pillow."""
    assert lines("requirements.txt")
    assert [line for line in lines("requirements.txt") if not re.fullmatch(r"[\w.-]+>=\d+(\.\d+)*", line)] == []


def test_the_tests_own_environment_has_lower_and_upper_bounds():
    bounded = r"[\w.-]+(\[\w+\])?>=\d+(\.\d+)*,<\d+(\.\d+)*"
    assert lines("tests/requirements.txt")
    assert [line for line in lines("tests/requirements.txt") if not re.fullmatch(bounded, line)] == []
