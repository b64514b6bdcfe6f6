"""Guidance nodes with each other: the order of the wiring is of no consequence."""

import functools
import itertools

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.93, 0.8, 0.5])
SHAPE = dict(double_blocks=1, single_blocks=2)
CONSTANT = dict(schedule={"schedule": "constant"}, unguided="conditional")
NODES = {
    "KleinKitCFG": dict(schedule={"schedule": "interval", "start": 0.0, "end": 0.6}, unguided="unconditional"),
    "KleinKitCFGZeroStar": dict(optimized_scale=True, zero_init_steps=1),
    "KleinKitSkipLayerGuidance": dict(
        scale=2.0, double_layers="", single_layers="1", start=0.25, end=1.0, mode="block", rescale=0.3
    ),
    "KleinKitSEG": dict(scale=2.0, double_layers="0", single_layers="", start=0.0, end=0.7, blur_sigma=0.8),
    "KleinKitRenorm": dict(mode="token", strength=0.7, shrink_only=False),
    "KleinKitSlerpCFG": {},
    "KleinKitImageCFG": dict(image_scale=2.0),
    "KleinKitBaseUncond": {},
    "KleinKitAutoGuidance": dict(scale=1.5, double_layers="0", single_layers="", prompt="both", start=0.0, end=0.7),
    "KleinKitMomentum": dict(alpha=0.7, beta=0.5, start=0.0, end=1.0),
    "KleinKitAdaptiveGuidance": dict(threshold=0.3),
    "KleinKitNAG": dict(scale=4.0, tau=2.0, alpha=0.5, start=0.0, end=0.7),
    "KleinKitAPG": dict(eta=0.2, norm_threshold=1.0, momentum=-0.5, space="denoised", start=0.0, scale=0.0),
    "KleinKitMAMBOG": dict(alpha=2.0),
    "KleinKitFDG": dict(shares="1, 0.2, 0.7"),
    "KleinKitTCFG": {},
}
# Of each of these, pairs are enough.
PAIRED = {
    "KleinKitAPG",
    "KleinKitMAMBOG",
    "KleinKitFDG",
    "KleinKitTCFG",
    "KleinKitAutoGuidance",
    "KleinKitMomentum",
    "KleinKitSEG",
}
# The first two join predictions where Slerp CFG does and keep nothing: pairs with what changes a prediction are enough.
# SEG adds as skip-layer does: pairs with the other passes, with another attention and with what comes after it are.
CHANGE = {"KleinKitCFGZeroStar", "KleinKitTCFG", "KleinKitSkipLayerGuidance"}
ONLY_WITH = {
    "KleinKitMAMBOG": CHANGE,
    "KleinKitFDG": CHANGE,
    "KleinKitSEG": {"KleinKitSkipLayerGuidance", "KleinKitAutoGuidance", "KleinKitNAG", "KleinKitMomentum", "KleinKitRenorm"},
}
# Each of them decides how predictions are combined.
EXCLUDE = {
    "KleinKitSlerpCFG": "Klein Slerp CFG",
    "KleinKitImageCFG": "Klein Image CFG",
    "KleinKitAPG": "Klein APG",
    "KleinKitMAMBOG": "Klein MAMBO-G",
    "KleinKitFDG": "Klein FDG",
}
NEUTRAL = {
    "KleinKitCFG": CONSTANT,
    "KleinKitCFGZeroStar": dict(optimized_scale=False, zero_init_steps=0),
    "KleinKitSkipLayerGuidance": NODES["KleinKitSkipLayerGuidance"] | {"scale": 0.0},
    "KleinKitSEG": NODES["KleinKitSEG"] | {"scale": 0.0},
    "KleinKitRenorm": dict(mode="global", strength=0.0, shrink_only=True),
    "KleinKitImageCFG": dict(image_scale=1.0),
    "KleinKitAutoGuidance": NODES["KleinKitAutoGuidance"] | {"scale": 1.0},
    "KleinKitMomentum": dict(alpha=0.0, beta=0.5, start=0.0, end=1.0),
    "KleinKitAdaptiveGuidance": dict(threshold=1.0),
    "KleinKitNAG": dict(scale=1.0, tau=2.0, alpha=0.5, start=0.0, end=1.0),
    "KleinKitAPG": dict(eta=1.0, norm_threshold=0.0, momentum=0.0, space="denoised", start=0.0, scale=0.0),
    "KleinKitMAMBOG": dict(alpha=0.0),
    "KleinKitFDG": dict(shares="1, 1"),
}


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(**SHAPE)


@pytest.fixture(scope="module")
def plain(klein):
    """Latents without our nodes: `cfg → latent`."""
    return functools.cache(lambda cfg: run(klein, cfg))


@pytest.fixture(scope="module")
def base(comfy):
    return small_klein(seed=5, **SHAPE)


def run(model, cfg=4.0, **kwargs):
    reference = {"reference_latents": [latent_noise(16, 16, seed=3)]}
    return comfy_run(
        model,
        SIGMAS,
        latent_noise(32, 32),
        conditioning(embeddings(192, 1)[:, :16], **reference),
        conditioning(embeddings(192, 2)[:, :16], **reference),
        cfg,
        **kwargs,
    )


def chain(run_node, model, base, names):
    return with_nodes(
        run_node,
        model,
        *((name, NODES[name] | ({"base_model": base} if name == "KleinKitBaseUncond" else {})) for name in names),
    )


def allowed(names):
    names = set(names)
    if any(name in names and not others & names for name, others in ONLY_WITH.items()):
        return False
    return len(EXCLUDE.keys() & names) < 2 and (len(names) == 2 or not PAIRED & names)


@pytest.mark.parametrize(
    "names", [names for size in (2, 3) for names in itertools.combinations(NODES, size) if allowed(names)], ids="+".join
)
def test_every_wiring_order_gives_the_same_pixels(klein, base, run_node, names):
    # Rotated, each two of them come in either order.
    orders = [names[i:] + names[:i] for i in range(len(names))]
    results = [run(chain(run_node, klein, base, order)) for order in orders]
    assert torch.isfinite(results[0]).all()
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_an_effect(klein, base, plain, run_node, name):
    assert not torch.allclose(run(chain(run_node, klein, base, [name])), plain(4.0), atol=1e-3)


@pytest.mark.parametrize("order", itertools.permutations(EXCLUDE, 2), ids="+".join)
def test_nodes_that_exclude_each_other_are_refused_in_either_order(klein, base, run_node, order):
    first, second = (EXCLUDE[name] for name in order)
    with pytest.raises(ValueError, match=f"^{second}: {second} and {first} both decide"):
        chain(run_node, klein, base, order)


def test_the_later_of_two_equal_nodes_wins_and_says_so(klein, run_node, caplog):
    caplog.set_level("INFO")
    first, second = ("KleinKitImageCFG", {"image_scale": 5.0}), ("KleinKitImageCFG", {"image_scale": 2.0})
    both = with_nodes(run_node, klein, first, second)
    assert "passes Klein Image CFG twice; the later one counts" in caplog.text
    assert torch.equal(run(both), run(with_nodes(run_node, klein, second)))


@pytest.mark.parametrize("cfg", (1.0, 4.0))
@pytest.mark.parametrize("name", [*NEUTRAL, "all"])
def test_neutral_settings_are_bit_equal_to_comfyui(klein, plain, run_node, name, cfg):
    # Of those that exclude each other one.
    together = [(other, inputs) for other, inputs in NEUTRAL.items() if other not in PAIRED & EXCLUDE.keys()]
    nodes = together if name == "all" else [(name, NEUTRAL[name])]
    assert torch.equal(run(with_nodes(run_node, klein, *nodes), cfg), plain(cfg))


def test_slerp_at_cfg_1_is_bit_equal_to_comfyui(klein, plain, run_node):
    assert torch.equal(run(with_nodes(run_node, klein, ("KleinKitSlerpCFG", {})), 1.0), plain(1.0))


def test_base_uncond_from_the_same_weights_changes_nothing(klein, plain, run_node):
    twin = small_klein(**SHAPE)
    same = with_nodes(run_node, klein, ("KleinKitBaseUncond", {"base_model": twin}))
    assert (run(same) - plain(4.0)).abs().max() < 1e-5
