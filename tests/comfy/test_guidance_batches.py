"""A picture of a batch is the picture that it is alone, whatever its neighbours are."""

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
REFERENCE = {"reference_latents": [latent_noise(32, 32, seed=3)]}
POSITIVE, NEGATIVE = (conditioning(embeddings(192, seed), **REFERENCE) for seed in (1, 2))
# Pictures of very different contrast.
NOISE = latent_noise(32, 32, batch=3) * torch.tensor([1.0, 0.2, 3.0])[:, None, None, None]
APG = dict(eta=0.2, norm_threshold=3.0, momentum=-0.5, start=0.0, scale=0.0)
NODES = {
    "cfg": ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 0.5}, unguided="conditional")),
    "zero star": ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1)),
    **{
        f"skip-layer {mode}": (
            "KleinKitSkipLayerGuidance",
            dict(scale=2.0, double_layers="", single_layers="1", start=0.0, end=1.0, mode=mode, rescale=0.7),
        )
        for mode in ("block", "attention")
    },
    "seg": ("KleinKitSEG", dict(scale=2.0, double_layers="", single_layers="1", start=0.0, end=1.0, blur_sigma=1.0)),
    **{
        f"renorm {mode}": ("KleinKitRenorm", dict(mode=mode, strength=1.0, shrink_only=False))
        for mode in ("global", "token", "channel")
    },
    "slerp": ("KleinKitSlerpCFG", {}),
    "nag": ("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0)),
    "mambo-g": ("KleinKitMAMBOG", {"alpha": 2.0}),
    "fdg": ("KleinKitFDG", {"shares": "1, 0.2, 0.7"}),
    "tcfg": ("KleinKitTCFG", {}),
    "autoguidance": (
        "KleinKitAutoGuidance",
        dict(scale=2.0, double_layers="", single_layers="1", prompt="both", start=0.0, end=1.0),
    ),
    "momentum": ("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0)),
    "image cfg": ("KleinKitImageCFG", {"image_scale": 2.0}),
    **{f"apg {space}": ("KleinKitAPG", APG | {"space": space}) for space in ("denoised", "velocity")},
}


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=2)


def run(model, noise):
    return comfy_run(model, SIGMAS, noise, POSITIVE, NEGATIVE, 4.0)


@pytest.mark.parametrize("name", NODES)
def test_every_rule(klein, run_node, name):
    model = with_nodes(run_node, klein, NODES[name])
    together = run(model, NOISE)
    for k in range(len(NOISE)):
        alone = run(model, NOISE[k : k + 1])
        assert (together[k : k + 1] - alone).abs().max() <= 1e-4 * alone.abs().max(), k


def cosines(klein, run_node, noise):
    """cos(v_c, v_u) of the picture in every step, by a probe."""
    watched, probe = run_node("KleinKitProbe", model=klein)
    run(watched, noise)
    return [call["cosine"] for call in probe.runs[-1].calls]


@pytest.mark.parametrize(
    "others",
    (
        (),
        (("KleinKitAPG", APG | {"space": "velocity"}),),
        (NODES["image cfg"], NODES["autoguidance"]),
        (NODES["momentum"], NODES["renorm global"]),
    ),
    ids=("alone", "APG", "with passes", "after the combination"),
)
@pytest.mark.parametrize("unguided", ("conditional", "unconditional"))
def test_adaptive_decides_for_each_picture(klein, run_node, unguided, others):
    plain = with_nodes(run_node, klein, *others)
    seen = [cosines(plain, run_node, NOISE[k : k + 1]) for k in range(len(NOISE))]
    # One picture does not come to it while that could still change it.
    threshold = sum(sorted(max(values[:-1]) for values in seen)[:2]) / 2
    nodes = (
        ("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided=unguided)),
        ("KleinKitAdaptiveGuidance", {"threshold": threshold}),
    )
    model = with_nodes(run_node, plain, *nodes)
    together = run(model, NOISE)
    results = [run(model, NOISE[k : k + 1]) for k in range(len(NOISE))]
    always = run(plain, NOISE)
    changed = [not torch.allclose(alone[0], always[k], atol=1e-3) for k, alone in enumerate(results)]
    assert any(changed) and not all(changed)
    for k, alone in enumerate(results):
        assert (together[k : k + 1] - alone).abs().max() <= 1e-4 * alone.abs().max(), k
