"""A preset is the nodes that its help page names, with the values that it names, to the bit."""

import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.97, 0.93, 0.88, 0.8, 0.7, 0.5, 0.2, 0.0])
STEPS = len(SIGMAS) - 1
REFERENCE = {"reference_latents": [latent_noise(16, 16, seed=3)]}
# What each stands for, and how many passes of each kind eight steps at cfg 4 run.
UNPACKED = {
    "off": ([], "cond 8, uncond 8"),
    "faster": (
        [
            ("KleinKitCFG", dict(schedule={"schedule": "diminishing", "cutoff": 0.3}, unguided="reuse")),
            ("KleinKitAdaptiveGuidance", dict(threshold=-1.0, start=0.0, every=4)),
        ],
        # At σ 0.7, where the next step would be guided, cfg has come to 1.
        "cond 8, uncond 1",
    ),
    "sharper": (
        [
            ("KleinKitSkipLayerGuidance", dict(scale=3.0, double_layers="", single_layers="9", start=0.0, end=0.5,
                                               mode="block", rescale=0.0)),
        ],
        "cond 8, uncond 8, skip 4",
    ),
    "negative_prompt": ([("KleinKitNAG", dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0))], "cond 8, uncond 8"),
    "high_cfg": ([("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=True))], "cond 8, uncond 8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=10)


def run(model, cfg=4.0, references=False):
    prompts = (conditioning(embeddings(192, seed)[:, :16], **(REFERENCE if references else {})) for seed in (1, 2))
    return comfy_run(model, SIGMAS, latent_noise(32, 32), *prompts, cfg)


def preset(name):
    return "KleinKitGuidance", {"preset": name}


def test_every_preset_is_unpacked_here(pack):
    assert UNPACKED.keys() == pack("guidance.presets").PRESETS.keys()


@pytest.mark.parametrize("references", (False, True))
@pytest.mark.parametrize("cfg", (1.0, 4.0))
@pytest.mark.parametrize("name", UNPACKED)
def test_it_is_its_nodes_wired_by_hand(klein, run_node, caplog, name, cfg, references):
    caplog.set_level("INFO")
    nodes, passes = UNPACKED[name]
    ours = run(with_nodes(run_node, klein, preset(name)), cfg, references)
    if cfg == 4.0 and nodes:
        assert f"({passes})" in caplog.text
    assert torch.equal(ours, run(with_nodes(run_node, klein, *nodes), cfg, references))
    assert torch.equal(ours, run(klein, cfg, references)) == (not nodes or (cfg == 1.0 and name in ("faster", "high_cfg")))


def test_presets_add_up_in_either_order(klein, run_node):
    first = with_nodes(run_node, klein, preset("faster"), preset("high_cfg"))
    assert torch.equal(run(first), run(with_nodes(run_node, klein, preset("high_cfg"), preset("faster"))))
    assert torch.equal(run(first), run(with_nodes(run_node, klein, *UNPACKED["faster"][0], *UNPACKED["high_cfg"][0])))


@pytest.mark.parametrize("name", UNPACKED)
def test_the_preview_shows_its_nodes_and_its_passes(pack, klein, run_node, caplog, name):
    caplog.set_level("INFO")
    preview, settings = pack("previews.guidance").preview, {"steps": STEPS, "shift": "none"}
    answer = preview({"rules": [{"node": "KleinKitGuidance", "inputs": {"preset": name}}], "cfg": 4.0, "sigmas": settings})
    assert answer["rules"] == [node for node, _ in UNPACKED[name][0]]
    assert answer["decides"] == []
    sigmas = torch.linspace(1.0, 0.0, STEPS + 1)
    prompts = (conditioning(embeddings(192, seed)[:, :16]) for seed in (1, 2))
    comfy_run(with_nodes(run_node, klein, preset(name)), sigmas, latent_noise(32, 32), *prompts, 4.0)
    assert f"{answer['total']} passes" in caplog.text or not answer["rules"]


def test_a_model_without_the_layers_is_refused_with_a_sentence(run_node, comfy):
    with pytest.raises(ValueError, match="^Klein Guidance: Expected `single_layers` to be layers of this model, 0 to 3"):
        with_nodes(run_node, small_klein(), preset("sharper"))
