"""What each step of guidance costs: block calls and rows on a model of Klein 4B's depth, 5 + 20 blocks."""

from contextlib import contextmanager

import pytest
import torch
from guidance_nodes import skips
from host_reads import host_reads
from sampling import comfy_run, conditioning, embeddings, latent_noise, longer, small_klein, with_nodes

BLOCKS = 25
STEP = torch.tensor([0.9, 0.4])


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=5, single_blocks=20)


@contextmanager
def counted(model):
    """`{block: rows}` of every block of the model that runs inside."""
    rows = {}

    def count(name):
        def hook(module, args, kwargs, output):
            first = output[0] if isinstance(output, tuple) else output
            rows[name] = rows.get(name, 0) + first.shape[0]

        return hook

    transformer = model.model.diffusion_model
    hooks = [
        block.register_forward_hook(count((kind, i)), with_kwargs=True)
        for kind in ("double", "single")
        for i, block in enumerate(getattr(transformer, f"{kind}_blocks"))
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def run(model, cfg, sigmas=STEP, batch=1, positive=None, negative=None):
    noise = latent_noise(64, 64, batch)
    return comfy_run(
        model,
        sigmas,
        noise,
        positive or conditioning(embeddings(192, 1)),
        negative or conditioning(embeddings(192, 2)),
        cfg,
    )


def rows_of(model, cfg, **kwargs):
    with counted(model) as rows:
        run(model, cfg, **kwargs)
    return rows


SKIP_SINGLE_9, COMFYUI_SKIP_SINGLE_9 = skips("9", 3.0)
SEG_SINGLE_2 = (
    "KleinKitSEG",
    dict(scale=3.0, double_layers="", single_layers="2", start=0.0, end=1.0, blur_sigma=10000.0),
)


def auto(prompt, **layers):
    inputs = dict(scale=2.0, double_layers="", single_layers="9", prompt=prompt, start=0.0, end=1.0)
    return "KleinKitAutoGuidance", inputs | layers


UNGUIDED = (
    "KleinKitCFG",
    dict(schedule={"schedule": "skip", "mode": "late", "guided_ratio": 0.0}, unguided="conditional"),
)
NEGATIVE_ONLY = ("KleinKitCFG", UNGUIDED[1] | {"unguided": "unconditional"})
ZERO_INIT = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1))


@pytest.mark.parametrize(
    "nodes, cfg, rows",
    [
        ((), 1.0, 25),
        ((), 4.0, 50),
        ((ZERO_INIT,), 4.0, 0),
        ((UNGUIDED,), 4.0, 25),
        ((NEGATIVE_ONLY,), 4.0, 25),
        ((UNGUIDED, ("KleinKitImageCFG", {"image_scale": 3.0})), 4.0, 25),
        ((("KleinKitCFG", dict(schedule={"schedule": "constant"}, unguided="conditional")),), 0.0, 25),
        ((("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True)),), 4.0, 50),
        ((("KleinKitSlerpCFG", {}),), 1.0, 25),
        ((("KleinKitSlerpCFG", {}),), 4.0, 50),
        ((("KleinKitImageCFG", {"image_scale": 1.0}),), 4.0, 50),
        ((("KleinKitAdaptiveGuidance", {"threshold": 0.99}),), 4.0, 50),
        ((SKIP_SINGLE_9,), 4.0, 60),
        ((SKIP_SINGLE_9,), 1.0, 35),
        ((COMFYUI_SKIP_SINGLE_9,), 4.0, 74),
        ((COMFYUI_SKIP_SINGLE_9,), 1.0, 49),
        ((ZERO_INIT, SKIP_SINGLE_9), 4.0, 0),
        ((UNGUIDED, SKIP_SINGLE_9), 4.0, 35),
        ((SEG_SINGLE_2,), 1.0, 43),
        ((SEG_SINGLE_2,), 4.0, 68),
        ((SKIP_SINGLE_9, SEG_SINGLE_2), 4.0, 78),
        ((auto("positive"),), 1.0, 35),
        ((auto("positive"),), 4.0, 60),
        # Each of the two begins where its own prompt's pass has come to.
        ((auto("both"),), 1.0, 35),
        ((auto("both"),), 4.0, 70),
        ((auto("negative"),), 4.0, 60),
        # At cfg 1 no pass of the negative has run, so this one is whole, without the block.
        ((auto("negative"),), 1.0, 49),
        ((UNGUIDED, auto("both")), 4.0, 35),
        ((NEGATIVE_ONLY, auto("both")), 4.0, 60),
        ((auto("positive"), SKIP_SINGLE_9), 4.0, 70),
        ((auto("positive", single_layers=""),), 4.0, 50),
        ((("KleinKitMomentum", dict(alpha=0.5, beta=0.6, start=0.0, end=1.0)),), 1.0, 25),
    ],
)
def test_rows_of_a_step(klein, run_node, nodes, cfg, rows):
    assert sum(rows_of(with_nodes(run_node, klein, *nodes), cfg).values()) == rows


def test_image_cfg_adds_one_pass_above_scale_1(klein, run_node):
    reference = {"reference_latents": [latent_noise(64, 64, seed=3)]}
    conds = dict(positive=conditioning(embeddings(192, 1), **reference), negative=conditioning(embeddings(192, 2), **reference))
    for scale, rows in ((1.0, 50), (2.0, 75)):
        model = with_nodes(run_node, klein, ("KleinKitImageCFG", {"image_scale": scale}))
        assert sum(rows_of(model, 4.0, **conds).values()) == rows


@pytest.mark.parametrize(
    "node, skipped",
    [
        (SKIP_SINGLE_9, {("double", 2), ("single", 9)}),
        ((SKIP_SINGLE_9[0], SKIP_SINGLE_9[1] | {"mode": "attention"}), set()),
        (SEG_SINGLE_2, set()),
    ],
    ids=("block", "attention", "SEG"),
)
def test_skip_pass_begins_at_its_first_layer(klein, run_node, node, skipped):
    name, inputs = node
    rows = rows_of(with_nodes(run_node, klein, (name, inputs | {"double_layers": "2"})), 4.0)
    for (kind, i), count in rows.items():
        again = (kind, i) not in skipped and (kind, i) >= ("double", 2)
        assert count == 2 + again, (kind, i)


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("apart", (False, True), ids=("one call", "two calls"))
def test_the_saving_holds_for_batches_and_for_conds_in_two_calls(klein, run_node, batch, apart):
    negative, calls = conditioning(longer(embeddings(192, 2)) if apart else embeddings(192, 2)), []
    model = with_nodes(run_node, klein, SKIP_SINGLE_9)
    hook = klein.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        assert sum(rows_of(model, 4.0, batch=batch, negative=negative).values()) == 60 * batch
    finally:
        hook.remove()
    assert len(calls) == 2 + apart


def test_adaptive_ends_guidance_once_the_passes_agree(klein, run_node):
    sigmas = torch.linspace(1, 0, 6)
    same = conditioning(embeddings(192, 1))
    model = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": 0.99}))
    assert sum(rows_of(model, 4.0, sigmas=sigmas, positive=same, negative=same).values()) == BLOCKS * (2 + 4)
    model = with_nodes(run_node, klein, ("KleinKitAdaptiveGuidance", {"threshold": 1.0}))
    assert sum(rows_of(model, 4.0, sigmas=sigmas).values()) == BLOCKS * 2 * 5


def reads_of(model, cfg, steps):
    return host_reads(lambda: run(model, cfg, sigmas=torch.linspace(1, 0, steps + 1)))


EVERY_RULE = (
    ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 1.0}, unguided="conditional")),
    ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=0)),
    ("KleinKitTCFG", {}),
    ("KleinKitSlerpCFG", {"cap": 20.0}),
    SKIP_SINGLE_9,
    ("KleinKitRenorm", dict(mode="token", strength=0.5, shrink_only=True)),
    ("KleinKitAdaptiveGuidance", {"threshold": 1.0}),
)


# In the place of Slerp CFG, which excludes them.
COMBINATIONS = {
    "KleinKitSlerpCFG": {},
    "KleinKitAPG": dict(eta=0.0, norm_threshold=5.0, momentum=-0.5, space="velocity", start=0.0, scale=0.0),
    "KleinKitMAMBOG": dict(alpha=8.0),
    "KleinKitFDG": dict(shares="1, 0.5, 0.2"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_at_most_one_host_synchronisation_a_step(klein, run_node, name):
    others = [node for node in EVERY_RULE if node[0] not in COMBINATIONS]
    model = with_nodes(run_node, klein, *others, (name, COMBINATIONS[name]))
    assert reads_of(model, 4.0, 3) - reads_of(model, 4.0, 1) == 2


@pytest.mark.parametrize("nodes, reads", [((), 1), (EVERY_RULE, 2)], ids=("plain", "every rule"))
def test_a_probe_adds_one_host_synchronisation_a_step(klein, run_node, nodes, reads):
    model = with_nodes(run_node, klein, *nodes, ("KleinKitProbe", {}))
    assert reads_of(model, 4.0, 3) - reads_of(model, 4.0, 1) == 2 * reads
