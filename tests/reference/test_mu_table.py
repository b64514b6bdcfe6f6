"""The table of mu on the help page is that of diffusers."""

import re
from pathlib import Path

from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

PAGE = Path(__file__).resolve().parents[2] / "web" / "docs" / "KleinKitScheduler.md"
ROW = re.compile(r"^\| (\d+)×(\d+) \| (\d+) \| ([\d. |]+) \|$", re.MULTILINE)


def test_table():
    page = PAGE.read_text("utf-8")
    steps = [int(count) for count in re.findall(r"(\d+) steps \|", page)]
    rows = ROW.findall(page)
    assert len(rows) > 5 and len(steps) > 3
    for width, height, tokens, mus in rows:
        assert int(tokens) == int(width) * int(height) // 256
        assert mus.split(" | ") == [f"{compute_empirical_mu(int(tokens), count):.3f}" for count in steps]
