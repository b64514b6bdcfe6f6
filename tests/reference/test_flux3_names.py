"""The names of FLUX 3's tensors, there and back: diffusers' converter, and ours for folders of diffusers."""

import torch
from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers
from files import flux3_klein
from kleinkit.checkpoint.families import FLUX3_KLEIN
from kleinkit.checkpoint.klein import layout, original_weight


def test_our_names_undo_diffusers():
    random = torch.Generator().manual_seed(0)
    tensors = flux3_klein(hidden=128, layers=2, joint=3, text_width=64)
    original = {key: torch.randn(shape, generator=random) for key, (_, shape) in tensors.items()}
    theirs = convert_flux3_transformer_checkpoint_to_diffusers(dict(original))
    names = layout(FLUX3_KLEIN, (2, 2, 2, 3), distilled=True)
    assert names.keys() == original.keys()
    assert {name for _, [name] in names.values()} == theirs.keys()
    for key, (_, parts) in names.items():
        assert torch.equal(original_weight(FLUX3_KLEIN, key, [theirs[name] for name in parts]), original[key]), key
