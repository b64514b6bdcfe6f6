"""What a user types into the editor's node search, in each language, brings up the node that does it."""

import json
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
IDEAS = {
    "KleinKitScheduler": ("img2img", "image to image", "画像から画像", "图生图"),
    "KleinKitSweep": ("compare cfg", "cfg 比較", "cfg 对比", "比较"),
    "KleinKitContactSheet": ("compare cfg", "cfg 比較", "cfg 对比", "比较"),
    "KleinKitReferences": ("flux klein edit", "inpaint", "編集", "参照画像", "编辑", "参考图"),
    "KleinKitNAG": ("negative prompt", "ネガティブプロンプト", "负面提示词", "反向提示词"),
    "KleinKitGuidance": ("negative prompt", "faster", "speed up", "高速化", "速く", "加速", "更快", "ネガティブ", "负面"),
    "KleinKitAdaptiveGuidance": ("faster", "高速化", "加速"),
    "KleinKitInpaintCrop": ("inpaint", "インペイント", "局部重绘"),
    "KleinKitInpaintStitch": ("inpaint", "インペイント", "局部重绘"),
    "KleinKitLoader": ("gguf", "load klein", "ローダー", "加载模型", "加载器"),
}


@pytest.mark.parametrize("kind, typed", [(kind, typed) for kind, ideas in IDEAS.items() for typed in ideas])
def test_an_idea_brings_up_its_node(comfy, kind, typed):
    """The editor looks at the id, the name in its language, and the aliases, which have no language."""
    schema = comfy.NODE_CLASS_MAPPINGS[kind].define_schema()
    names = [
        json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))[kind]["display_name"]
        for language in ("en", "ja", "zh")
    ]
    assert any(typed in name.lower() for name in (*schema.search_aliases, *names))
