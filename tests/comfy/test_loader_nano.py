"""KleinKitLoader on the nano family, in the real ComfyUI."""

import pytest
import torch


@pytest.fixture(scope="module")
def load(models, comfy):
    def load(**inputs):
        defaults = dict(diffusion_model=models["base"].name, text_encoder="auto", vae="auto", variant="auto",
                        weight_dtype="default", distilled_cfg="ignore", trim_text_encoder=True)
        return comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].execute(**defaults | inputs).result

    return load


def test_settings_of_base_and_distilled(load, models):
    assert load()[3:5] == (50, 4.0)
    assert load(diffusion_model=models["distilled"].name)[3:5] == (4, 1.0)


def test_model_equals_unet_loader(load, models, comfy):
    ours, theirs = load()[0].model, comfy.UNETLoader().load_unet(models["base"].name, "default")[0].model
    assert type(ours) is type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key


def test_prompt_to_picture_size(load):
    model, clip, vae, *_ = load()
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    assert conditioning[0][0].shape == (1, 512, 192)
    assert vae.decode(torch.zeros(1, 128, 4, 4)).shape == (1, 64, 64, 3)
