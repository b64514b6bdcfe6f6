"""Percents behind KleinKitDynamicShift name steps of the run: ranges of ComfyUI's own nodes fire on those."""

import itertools

import pytest
import torch
from kleinkit.nano.in_comfyui import random_klein
from sampling import conditioning, embeddings, with_nodes
from sigmas import ksampler_inputs, scheduler_inputs

TEXT_WIDTH = 192
RANGES = ((0.0, 0.5), (0.25, 0.5), (0.3, 0.8), (0.5, 1.0), (0.01, 0.15))
FLUX2 = ("KleinKitDynamicShift", {"shift": {"shift": "flux2"}})


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein()


@pytest.fixture(
    params=[
        "simple 8",
        "simple 20",
        "karras 8",
        "beta 20",
        "linear_quadratic 8",
        "KleinKitScheduler karras",
        "KleinKitScheduler uniform",
    ]
)
def schedule(request, run_node, klein):
    """Sigmas as a scheduler node hands them out, of ComfyUI or KleinKit."""
    kind, detail = request.param.split()
    if kind == "KleinKitScheduler":
        return run_node(kind, **scheduler_inputs(spacing=detail, steps=10, shift={"shift": "fixed", "mu": 0.5}))[0]
    return run_node("BasicScheduler", model=klein, scheduler=kind, steps=int(detail), denoise=1.0)[0]


@pytest.fixture
def calls(run_node):
    """How many positive rows the model is asked for in each step of a run; it need not answer."""

    def rows(model, sigmas, positive=None):
        clone, seen = model.clone(), []

        def note(apply, args):
            seen.append((float(args["timestep"][0]), args["cond_or_uncond"].count(0)))
            return torch.zeros_like(args["input"])

        clone.set_model_unet_function_wrapper(note)
        plain = conditioning(embeddings(TEXT_WIDTH, 1))
        run_node(
            "SamplerCustom",
            model=clone,
            add_noise=True,
            noise_seed=0,
            cfg=1.0,
            positive=positive or plain,
            negative=plain,
            sampler=run_node("KSamplerSelect", sampler_name="euler")[0],
            sigmas=sigmas,
            latent_image={"samples": torch.zeros(1, 128, 2, 2)},
        )
        return [sum(rows for _, rows in step) for _, step in itertools.groupby(seen, key=lambda call: call[0])]

    return rows


def in_range(steps, start, end):
    """ComfyUI's ranges include both of their ends."""
    return [start * steps <= i <= end * steps for i in range(steps)]


@pytest.mark.parametrize("start, end", RANGES)
def test_range_of_a_conditioning(klein, run_node, calls, schedule, start, end):
    plain = conditioning(embeddings(TEXT_WIDTH, 1))
    ranged = run_node(
        "ConditioningSetTimestepRange", conditioning=conditioning(embeddings(TEXT_WIDTH, 3)), start=start, end=end
    )[0]
    rows = calls(with_nodes(run_node, klein, FLUX2), schedule, plain + ranged)
    assert rows == [1 + fires for fires in in_range(len(schedule) - 1, start, end)]


@pytest.mark.parametrize("start, end", RANGES)
def test_range_of_a_controlnet(klein, run_node, calls, schedule, start, end):
    from comfy.controlnet import ControlBase

    class Control(ControlBase):
        """Notes the sigmas at which it acts, by the very comparison of ComfyUI's ControlNet."""

        sigmas = []

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            if not (t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]):
                self.sigmas.append(float(t[0]))

        def get_models(self):
            return []

    control = Control().set_cond_hint(None, timestep_percent_range=(start, end))
    calls(with_nodes(run_node, klein, FLUX2), schedule, conditioning(embeddings(TEXT_WIDTH, 1), control=control))
    assert len(control.sigmas) == sum(in_range(len(schedule) - 1, start, end))


@pytest.mark.parametrize("start, end", RANGES)
def test_range_of_skip_layer_guidance_dit(klein, run_node, calls, schedule, start, end):
    slg = (
        "SkipLayerGuidanceDiT",
        dict(double_layers="", single_layers="1", scale=2.0, start_percent=start, end_percent=end, rescaling_scale=0.0),
    )
    rows = calls(with_nodes(run_node, klein, FLUX2, slg), schedule)
    assert rows == [1 + fires for fires in in_range(len(schedule) - 1, start, end)]


@pytest.mark.parametrize("scheduler", ["BasicScheduler", "KleinKitScheduler", "Flux2Scheduler"])
def test_percents_of_a_piece_are_those_of_the_whole_schedule(klein, run_node, calls, scheduler):
    ranged = run_node(
        "ConditioningSetTimestepRange", conditioning=conditioning(embeddings(TEXT_WIDTH, 3)), start=0.5, end=0.75
    )[0]
    inputs = {
        "BasicScheduler": dict(model=klein, scheduler="simple", steps=8, denoise=1.0),
        "KleinKitScheduler": scheduler_inputs(steps=8),
        "Flux2Scheduler": dict(steps=8, width=512, height=512),
    }
    sigmas = run_node(scheduler, **inputs[scheduler])[0]
    model = with_nodes(run_node, klein, FLUX2)
    plain = conditioning(embeddings(TEXT_WIDTH, 1))
    halves = [calls(model, part, plain + ranged) for part in run_node("SplitSigmas", sigmas=sigmas, step=5)]
    assert halves == [[1, 1, 1, 1, 2], [2, 2, 1]]


def test_a_model_before_it_means_its_own_schedule(klein, run_node, calls):
    slg = dict(double_layers="", single_layers="1", scale=2.0, start_percent=0.3, end_percent=0.6, rescaling_scale=0.0)
    shifted = with_nodes(run_node, klein, FLUX2)
    with_nodes(run_node, shifted, ("SkipLayerGuidanceDiT", slg))
    plain = with_nodes(run_node, klein, ("SkipLayerGuidanceDiT", slg))
    sigmas = run_node("BasicScheduler", model=klein, scheduler="simple", steps=8, denoise=1.0)[0]
    static = klein.get_model_object("model_sampling")
    fires = [static.percent_to_sigma(0.6) <= sigma <= static.percent_to_sigma(0.3) for sigma in sigmas[:-1].tolist()]
    assert calls(plain, sigmas) == [1 + fire for fire in fires]


class TestPercentsBeforeARun:
    @pytest.fixture(autouse=True)
    def sampling(self, klein, run_node):
        self.model = with_nodes(run_node, klein, FLUX2)
        self.shifted = self.model.get_model_object("model_sampling")
        self.static = klein.get_model_object("model_sampling")

    @pytest.mark.parametrize("percent", [-1.0, 0.0, 0.2, 0.999, 1.0, 2.0])
    def test_they_are_the_static_ones(self, percent):
        assert self.shifted.percent_to_sigma(percent) == self.static.percent_to_sigma(percent)

    def test_numbers_and_tensors_compare_with_the_run_in_progress(self, run_node):
        from comfy.patcher_extension import WrappersMP

        sigma, seen = self.shifted.percent_to_sigma(0.5), []

        def compare(executor, guider, sigmas, *args, **kwargs):
            second, third = sigmas[1:3]
            for value in (second, second.item()):
                seen.append([bool(value > sigma), bool(value >= sigma), bool(sigma < value), bool(sigma <= value)])
            for value in (third, third.item()):
                seen.append([bool(value >= sigma), bool(value <= sigma), bool(sigma <= value), bool(sigma >= value)])
            assert torch.maximum(third, torch.tensor(float(sigma.now()))) == third
            return executor(guider, sigmas, *args, **kwargs)

        self.model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "compare", compare)
        run_node("KSampler", model=self.model, **ksampler_inputs(TEXT_WIDTH, 32, 32, steps=4))
        assert seen == [[True] * 4] * 4
        # Before and after a run it is the static sigma.
        assert sigma > self.static.percent_to_sigma(0.51) and sigma < self.static.percent_to_sigma(0.49)
