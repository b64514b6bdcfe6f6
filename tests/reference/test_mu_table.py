"""The list of mu on the help page is that of diffusers."""

import re
from pathlib import Path

from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

PAGE = Path(__file__).resolve().parents[2] / "web" / "docs" / "KleinKitScheduler.md"
STEPS = re.compile(r"mu of `flux2` at ([\d, ]+) and (\d+) steps:")
ROW = re.compile(r"^- (\d+)×(\d+): ([\d., ]+)$", re.MULTILINE)


def test_table():
    page = PAGE.read_text("utf-8")
    some, last = STEPS.search(page).groups()
    steps = [*map(int, some.split(", ")), int(last)]
    rows = ROW.findall(page)
    assert len(rows) > 4 and len(steps) > 3
    for width, height, mus in rows:
        tokens = int(width) * int(height) // 256
        assert mus.split(", ") == [f"{compute_empirical_mu(tokens, count):.3f}" for count in steps]
