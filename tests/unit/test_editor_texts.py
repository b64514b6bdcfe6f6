"""The texts of the editor's figures are in every language."""

import json
import re

import pytest
from kleinkit.harness.server import ROOT

PLACE = re.compile(r"\{\w+\}")
STRING = r'"((?:[^"\\]|\\.)*)"'


def said():
    """What `web/*.js` says: the texts of `say("…")`, and those that explain a symbol."""
    found = set()
    for script in sorted((ROOT / "web").glob("*.js")):
        text = script.read_text("utf-8")
        calls = re.findall(rf"\bsay\(\s*{STRING}", text)
        explained = re.search(r"const EXPLAINED = \{\n(.*?)\n\}", text, re.DOTALL)
        found |= {*calls, *(re.findall(rf": {STRING},$", explained[1], re.MULTILINE) if explained else ())}
    return found


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_a_language_has_every_text_of_a_figure_and_none_too_many(language):
    texts = json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["KleinKit"]
    assert len(texts) > 40 and set(texts) == said()
    assert {text for text, translated in texts.items() if PLACE.findall(text) and translated == text} == set()
    assert {
        text for text, translated in texts.items() if sorted(PLACE.findall(text)) != sorted(PLACE.findall(translated))
    } == set()
