"""FLUX 3's blocks: skip-layer guidance runs the joint ones alone again, and the probe counts those of the modes too.

The stand-in lets joint blocks be replaced as ComfyUI's Flux does with its single blocks.
"""

import pytest
import torch
from flux3 import JOINT_BLOCKS, MODE_BLOCKS, MODES, euler, stand_in, text, transformer, velocity
from sampling import comfy_run, conditioning, latent_noise, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.0])
STEPS = len(SIGMAS) - 1
NOISE = latent_noise(64, 96)
REFERENCE = latent_noise(64, 64, seed=3)
CFG, SCALE, LIMIT = 3.5, 2.5, 1e-5


def skip(layers, **changes):
    defaults = dict(scale=SCALE, double_layers="", single_layers=layers, start=0.0, end=1.0, mode="block", rescale=0.0)
    return "KleinKitSkipLayerGuidance", {**defaults, **changes}


def run(model, cfg=CFG, positive=(REFERENCE,), negative=(REFERENCE,), windows=(1, 1)):
    prompts = (
        conditioning(text(seed, count), **({"reference_latents": list(some)} if some else {}))
        for seed, count, some in zip((1, 2), windows, (positive, negative))
    )
    return comfy_run(model, SIGMAS, NOISE, *prompts, cfg)


def rows_of(model, made):
    """How many rows each block saw in a run: `{"mode": …, "joint": [of the first, …]}`."""
    inner, rows, hooks = model.model.diffusion_model, {"mode": 0, "joint": [0] * JOINT_BLOCKS}, []

    def joint(index):
        def count(block, args):
            rows["joint"][index] += len(args[0])

        return count

    def mode(block, args):
        rows["mode"] += len(args[0])

    for index, block in enumerate(inner.single_blocks):
        hooks.append(block.register_forward_pre_hook(joint(index)))
    for stack in (*inner.content_mode_blocks.children(), inner.txt_mode_blocks):
        hooks += [block.register_forward_pre_hook(mode) for block in stack]
    try:
        made()
    finally:
        for hook in hooks:
            hook.remove()
    return rows


@pytest.mark.parametrize("windows", [(1, 1), (1, 2)], ids=["one call", "two calls"])
def test_the_skip_pass_runs_the_joint_blocks_from_the_skipped_one_on(run_node, windows):
    model = with_nodes(run_node, stand_in(), skip("2"))
    rows = rows_of(model, lambda: run(model, windows=windows))
    assert rows["joint"] == [2 * STEPS, 2 * STEPS, 2 * STEPS, 3 * STEPS]
    # No ComfyUI is known to let the blocks of the modes be replaced: the pass runs them, and they are few.
    assert rows["mode"] == 3 * STEPS * MODES * MODE_BLOCKS


class ValuesOnly:
    """An attention processor of diffusers that looks at nothing but the place itself."""

    def __call__(self, attn, hidden_states, attention_mask=None, image_rotary_emb=None):
        return attn.to_out[0](attn.to_v(hidden_states))


@pytest.mark.parametrize("cfg", [1.0, CFG])
@pytest.mark.parametrize("layers", ["0", "1, 3", "2"])
@pytest.mark.parametrize("mode", ["block", "attention"])
def test_the_skip_pass_is_that_of_diffusers_transformer(run_node, mode, layers, cfg):
    whole, other = transformer(), transformer()
    places = [int(layer) for layer in layers.split(",")]
    for place in reversed(places):
        if mode == "block":
            del other.single_transformer_blocks[place]
        else:
            other.single_transformer_blocks[place].attn.set_processor(ValuesOnly())

    def predict(x, sigma, target, step):
        cond, uncond = (velocity(whole, x, sigma, text(seed), [REFERENCE]) for seed in (1, 2))
        return uncond + cfg * (cond - uncond) + SCALE * (cond - velocity(other, x, sigma, text(1), [REFERENCE]))

    theirs = euler(SIGMAS, NOISE, predict)
    given = run(with_nodes(run_node, stand_in(), skip(layers, mode=mode)), cfg)
    assert (given - theirs).abs().max() <= LIMIT * theirs.abs().max()


class TestWhereBlocksCannotBeReplaced:
    """Else the picture would be that of no skip-layer guidance, at the cost of one more pass a step."""

    SENTENCE = (
        "Klein Skip-Layer Guidance: This model does not let another node replace its single block 2, so no layer would be "
        "skipped: update ComfyUI, or remove this node."
    )

    @pytest.mark.parametrize("windows", [(1, 1), (1, 2)], ids=["one call", "two calls"])
    def test_the_run_ends(self, run_node, windows):
        model = with_nodes(run_node, stand_in(replaceable=False), skip("2"))
        with pytest.raises(ValueError) as error:
            run(model, windows=windows)
        assert str(error.value) == self.SENTENCE

    def test_where_the_step_is_not_guided_it_goes_on(self, run_node):
        plain = run(stand_in(replaceable=False))
        assert torch.equal(run(with_nodes(run_node, stand_in(replaceable=False), skip("2", scale=0.0))), plain)


@pytest.mark.parametrize(
    "inputs, sentence",
    [
        ({"single_layers": "4"}, "`single_layers` to be layers of this model, 0 to 3 (such as `3` or `0-2`), but got '4'."),
        ({"double_layers": "0"}, "`double_layers` to be empty, because this model has no such layers, but got '0'."),
    ],
    ids=str,
)
def test_layers_that_it_does_not_have(run_node, inputs, sentence):
    with pytest.raises(ValueError, match="^Klein Skip-Layer Guidance: ") as error:
        with_nodes(run_node, stand_in(), skip("2", **inputs))
    assert sentence in str(error.value)


@pytest.mark.parametrize("references, modes", [((), MODES - 1), ((REFERENCE,), MODES)])
def test_the_probe_counts_the_blocks_of_the_modes_and_the_joint_ones(run_node, pack, references, modes):
    probe = pack("engine.watch").Probe("1")
    model = pack("engine.sampling").with_probe(stand_in(), probe)
    run(model, positive=references, negative=references)
    [record] = probe.runs
    whole = modes * MODE_BLOCKS + JOINT_BLOCKS
    assert [(call["passes"], call["blocks"]) for call in record.calls] == [(2, 2 * whole)] * STEPS


class TestReferencesInOnePrompt:
    """Guidance compares two predictions: both prompts need the references."""

    @pytest.fixture
    def said(self, caplog):
        return lambda: [one.getMessage() for one in caplog.records if "reference" in one.getMessage()]

    @pytest.fixture
    def loaded(self, pack):
        return lambda: pack("engine.sampling").with_hooks(stand_in())

    @pytest.mark.parametrize("having", ["positive", "negative"])
    def test_a_sentence(self, loaded, said, having):
        prompts = dict.fromkeys(("positive", "negative"), ()) | {having: (REFERENCE,)}
        run(loaded(), **prompts)
        assert said() == [
            f"KleinKit: The references are in the {having} prompt alone. FLUX 3 is guided with them in both: take both "
            "prompts from Klein References, or put ReferenceLatent behind the other one too."
        ]

    def test_nothing_is_said_of_both_of_none_and_at_cfg_1(self, loaded, said):
        run(loaded())
        run(loaded(), positive=(), negative=())
        run(loaded(), cfg=1.0, negative=())
        assert said() == []

    def test_image_cfg(self, run_node, said):
        model = with_nodes(run_node, stand_in(), ("KleinKitImageCFG", {"image_scale": 2.0}))
        with pytest.raises(ValueError, match="^Klein Image CFG: The negative prompt has no reference latent"):
            run(model, negative=())
        assert said() == []
        run(model, positive=())
        assert len(said()) == 1
