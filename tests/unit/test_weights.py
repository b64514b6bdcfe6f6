"""The weights in git are those that were recorded, and those that they replaced: docs/decisions/weights.md."""

import hashlib

import pytest
from shipped import ROOT, git

WEIGHTS = ROOT / "nano" / "weights"
RECORDED = dict(reversed(line.split()) for line in (WEIGHTS / "SHA256SUMS").read_text("utf-8").splitlines())
LARGE = 2**20
# The ids in git of the first and the second version of the two files.
REPLACED = {
    "d3c550853af67d70f8ea8cfebfa5cf91eb54e504",
    "3e4535a0f0ee6f0a0270d4dde949973cf3416dad",
    "be41cf38c3ba6243c1d2e9f920457a6ff64a7f88",
    "c336f0e3b700ad960f93c1b7326e3751de4d2408",
}


def large_blobs() -> set[str]:
    """The ids of all large versions of files in the history, as far as it is here."""
    found = git("rev-list", "--objects", "--no-object-names", "--all")
    told = git("cat-file", "--batch-check=%(objecttype) %(objectname) %(objectsize)", stdin=found)
    return {name for kind, name, size in map(str.split, told.splitlines()) if kind == "blob" and int(size) > LARGE}


def test_every_file_is_recorded():
    assert {path.name for path in WEIGHTS.glob("*.safetensors")} == set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_hash(name):
    assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == RECORDED[name]


def test_history_holds_no_other_version():
    """Also in a shallow clone: it holds less, and never more."""
    recorded = set(git("hash-object", "--no-filters", *(str(WEIGHTS / name) for name in RECORDED)).split())
    assert large_blobs() - recorded - REPLACED == set()
