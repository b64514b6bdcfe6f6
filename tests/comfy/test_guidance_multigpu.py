"""Every guidance node under ComfyUI's own split of the passes over several GPUs: two devices for ComfyUI, one for torch."""

import pytest
import torch
from guidance_nodes import EVERY_NODE
from releases import is_older
from sampling import comfy_run, conditioning, embeddings, latent_noise, with_nodes

SIGMAS = torch.tensor([1.0, 0.8, 0.4, 0.0])
REFERENCE = {"reference_latents": [latent_noise(32, 32, seed=3)]}
NODES = {"none": {}, **EVERY_NODE, "KleinKitDynamicShift": {"shift": {"shift": "flux2"}}}


def load(path):
    import comfy.sd

    # By a loader that lets ComfyUI load it again, for the other device.
    return comfy.sd.load_diffusion_model(str(path), {"dtype": torch.float32})


@pytest.fixture(scope="module")
def split(models, comfy):
    """`(a model on one device, the same on two, a function that counts the rows that the second one has seen)`."""
    model = load(models["base"])
    if not hasattr(model, "deepclone_multigpu"):
        return model, None, None  # ComfyUI before 0.24 runs on one GPU only.
    from comfy.multigpu import GPUOptionsGroup

    both, second, rows = model.clone(), model.deepclone_multigpu(new_load_device=torch.device("cpu", 0)), []
    second.is_multigpu_base_clone = True
    both.set_additional_models("multigpu", [second])
    both.match_multigpu_clones()
    GPUOptionsGroup().register(both)
    second.model.diffusion_model.single_blocks[0].register_forward_hook(lambda _, __, output: rows.append(len(output)))
    return model, both, lambda: sum(rows)


def test_every_guidance_node_is_here(pack):
    assert EVERY_NODE.keys() == {node.__name__ for node in pack("nodes.guidance").NODES}


@pytest.mark.parametrize("unguided", ("reuse", "extrapolate"))
def test_guidance_is_reused_on_two_devices_as_on_one(split, run_node, unguided):
    one, both, rows = split
    if is_older("0.24", both):
        return
    schedule = {"schedule": "skip", "mode": "alternate", "guided_ratio": 0.7}
    positive, negative = (conditioning(embeddings(192, seed)[:, :32]) for seed in (1, 2))
    results = [
        comfy_run(with_nodes(run_node, model, ("KleinKitCFG", dict(schedule=schedule, unguided=unguided))), SIGMAS,
                  latent_noise(32, 48), positive, negative, 3.0)
        for model in (one, both)
    ]  # fmt: skip
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


@pytest.mark.parametrize("name", NODES)
def test_two_devices_give_the_latent_of_one(split, models, run_node, name):
    one, both, rows = split
    if is_older("0.24", both):
        return
    inputs = NODES[name] | ({"base_model": load(models["distilled"])} if name == "KleinKitBaseUncond" else {})
    positive, negative = (conditioning(embeddings(192, seed)[:, :32], **REFERENCE) for seed in (1, 2))
    before = rows()
    results = []
    for model in (one, both):
        guided = with_nodes(run_node, model, (name, inputs)) if name != "none" else model
        results.append(comfy_run(guided, SIGMAS, latent_noise(32, 48), positive, negative, 3.0))
    # Where the negative is another model's, one pass is left, and nothing to split.
    assert (rows() > before) == (name != "KleinKitBaseUncond")
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()
