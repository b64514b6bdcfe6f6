"""ComfyUI's own tests without and with KleinKit in its `custom_nodes`, compared: `python3 tasks.py comfyui-tests`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from ...harness.server import ROOT, put_pack

TIERS = {"tests-unit": (), "tests/execution": ("--skip-timing-checks",)}
REPORTS = ROOT / ".reports"
# What an installation holds beside ComfyUI itself.
OF_USERS = "models", "custom_nodes", "input", "output", "temp", "user", "venv", ".venv", ".git"


def copy(comfyui, folder):
    """ComfyUI without what its user has put there: its tests write into their folder."""
    shutil.copytree(comfyui, folder, ignore=lambda inside, _: OF_USERS if Path(inside) == comfyui else ())
    for name in OF_USERS[:5]:
        (folder / name).mkdir()


def outcomes(report):
    """`{test: "passed", "failure", "error" or "skipped"}` of a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = (bad or ["passed"])[0]
    return found


def run(folder, tier, report):
    """Run a folder of tests; what became of each."""
    # They start `python main.py`.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            tier,
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            f"--junitxml={report}",
            *TIERS[tier],
        ],
        cwd=folder,
        env=os.environ | {"PATH": path},
    )
    return outcomes(report)


def main(arguments):
    REPORTS.mkdir(exist_ok=True)
    results = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "ComfyUI"
        copy(Path(os.environ["COMFYUI_PATH"]), folder)
        for pack in ("without", "with"):
            if pack == "with":
                put_pack(folder)
            for tier in TIERS:
                print(f"{tier}, {pack} KleinKit:", flush=True)
                report = REPORTS / f"comfyui-{tier.replace('/', '-')}-{pack}.xml"
                results[tier, pack] = run(folder, tier, report)
    different = 0
    for tier in TIERS:
        without, own = results[tier, "without"], results[tier, "with"]
        changed = sorted(test for test in without | own if without.get(test) != own.get(test))
        different += len(changed)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(own.values()).most_common())
        print(f"{tier}: {counts}; {len(changed)} other than without KleinKit{''.join(f', {test}' for test in changed)}")
    return int(different > 0)
