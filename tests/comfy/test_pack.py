"""The pack in the real ComfyUI."""


def test_loads(comfy):
    assert any(name.startswith("KleinKit") for name in comfy.NODE_CLASS_MAPPINGS)
