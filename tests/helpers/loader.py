"""KleinKitLoader in the real ComfyUI: folders of models of one's own, its node, and what is read of the files."""

import os
from collections import defaultdict
from pathlib import Path

import safetensors
import torch

FOLDERS = ("diffusion_models", "text_encoders", "vae", "vae_approx", "diffusers", "loras")


def use_models(monkeypatch, base):
    """Make ComfyUI look for models in the subfolders of `base`, and nowhere else, until the test ends."""
    import folder_paths

    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
        _, extensions = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(base / name)], extensions))
    # ComfyUI keeps the names that it has listed.
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def link_models(models, base, roles=""):
    """Put files of the nano family into `base`: those whose role begins with `roles`."""
    for role, path in models.items():
        if role.startswith(roles):
            target = base / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)


def load(run_node, diffusion_model, **inputs):
    """What KleinKitLoader outputs; inputs that are not given have their defaults."""
    import nodes

    schema = nodes.NODE_CLASS_MAPPINGS["KleinKitLoader"].GET_SCHEMA()
    defaults = {entry.id: entry.default for entry in schema.inputs}
    return run_node("KleinKitLoader", **defaults | {"diffusion_model": diffusion_model} | inputs)


def record_reads(monkeypatch):
    """`{file name: names}` of the tensors that are read through safetensors from here on."""
    reads = defaultdict(list)

    class Recorded:
        def __init__(self, file, *args, **kwargs):
            self.name, self.file = Path(file).name, safe_open(file, *args, **kwargs)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            reads[self.name].append(key)
            return self.file.get_tensor(key)

    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Recorded)
    return reads


def check_that_a_merge_gets_all_layers(trimmed, whole):
    """Merge nodes take from a trimmed text encoder what they take from a whole one; of a vision part only the names."""
    ours, theirs = (clip.get_key_patches() for clip in (trimmed, whole))
    assert ours.keys() == theirs.keys()
    different = [key for key, [(weight, *_), *_] in theirs.items() if not torch.equal(ours[key][0][0], weight)]
    assert [key for key in different if ".visual." not in key] == []
