"""ComfyUI-Manager installs requirements.txt, pip and the registry read pyproject.toml."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_both_name_the_same():
    [listed] = re.findall(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r'"([^"]+)"', listed) == (ROOT / "requirements.txt").read_text("utf-8").split()
