"""The names of FLUX 3's tensors, there and back: diffusers' converter, and ours for folders of diffusers; and what is read."""

import inspect

import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from files import flux3_klein
from kleinkit.checkpoint.families import FLUX2_KLEIN, FLUX3_KLEIN
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


def test_layers_of_the_text_encoder_that_are_read():
    name = "text_encoder_out_layers"
    assert FLUX2_KLEIN.taps == inspect.signature(Flux2KleinPipeline.__call__).parameters[name].default
    assert FLUX3_KLEIN.taps == {one.name: one.default for one in Flux3TextEncoderStep().inputs}[name]
