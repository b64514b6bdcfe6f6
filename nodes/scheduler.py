"""Sigmas that follow the size and the step count of the picture."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy.model_base import Flux2
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow, ModelSamplingFlux
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..checks import brought, expected, names_itself, no_choice, sentence
from ..engine.family import family_of_model
from ..engine.latent import latent_tokens, sampled
from ..engine.run_shift import RunShift, own_sampling, shift_run, with_run_shift
from ..scheduler.mu import Shift, beyond_fit, flux3
from ..scheduler.schedule import (
    AUTO,
    DENOISE_MODES,
    LIMITS,
    SHIFT_CHOICES,
    Schedule,
    choose_shift,
    make,
    picture_tokens,
    shift_of,
)
from ..scheduler.spacing import SPACINGS

WRAPPER = "kleinkit_shift"
FLUX3 = flux3.__name__
# FLUX 3 needs no Dynamic Shift, and of FLUX.2 alone `auto` would be another name of `flux2`.
DYNAMIC_CHOICES = tuple(choice for choice in SHIFT_CHOICES if choice not in (AUTO, FLUX3))
ABOUT = {
    AUTO: "auto: as the connected model needs it, FLUX.2 without one. ",
    FLUX3: "flux3: FLUX 3's, the same for every size and step count. ",
}


def _number(id: str, default: float, step: float, tooltip: str) -> io.Int.Input | io.Float.Input:
    low, high = LIMITS[id]
    kind = io.Int if isinstance(default, int) else io.Float
    return kind.Input(id, default=default, min=low, max=high, step=step, tooltip=tooltip)


def shift_input(choices: Sequence[str]) -> io.DynamicCombo.Input:
    """The input `shift`: how mu is found, with the inputs that each way brings. A fresh node has the first choice."""
    inputs = {
        "flux1": [
            _number("base_shift", 0.5, 0.01, "mu of a 256×256 picture (256 tokens)."),
            _number("max_shift", 1.15, 0.01, "mu of a 1024×1024 picture (4096 tokens)."),
        ],
        "fixed": [_number("mu", 1.15, 0.01, "The same mu for every size and step count. 0 shifts nothing.")],
        # Not `shift`: ComfyUI would overwrite it with the choice itself.
        "linear": [_number("linear_shift", 3.0, 0.01, "s of σ' = sσ/(1+(s−1)σ), as in ModelSamplingSD3. 1 shifts nothing.")],
    }

    def about(choice: str) -> str:
        return ABOUT[choice] if choice in choices else ""

    return io.DynamicCombo.Input(
        "shift",
        options=[io.DynamicCombo.Option(choice, inputs.get(choice, [])) for choice in choices],
        tooltip=f"How much of the run is spent at high noise. {about(AUTO)}flux2: Black Forest Labs' formula for FLUX.2, "
        "from size and steps; made for at most 200 steps. flux2_continuous: the same without its jump just above 1 megapixel, "
        f"and above 200 steps with the mu of 200. {about(FLUX3)}flux1: FLUX.1's. "
        "fixed: your own mu. linear: Stable Diffusion 3's shift. none: even steps.",
    )


def chosen_shift(shift: dict[str, Any], model: ModelPatcher | None = None) -> Shift:
    """The function `(tokens, steps) → mu` of the value of `shift_input`; a model says what `auto` is.

    Raises:
        ValueError: a value does not fit, or `auto` does not know the model.
    """
    inputs = brought("shift", shift)
    choice = inputs.pop("shift")
    if choice != AUTO or model is None:
        return choose_shift(shift_of(choice), **inputs)
    family = family_of_model(model.model)
    if family is None:
        fits = "a FLUX.2 or a FLUX 3 model, whose shift `auto` knows"
        raise ValueError(sentence("model", fits, f"got {type(model.model).__name__}: choose another `shift`"))
    return choose_shift(family.shift, **inputs)


@names_itself
class KleinKitScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitScheduler",
            display_name="Klein Scheduler",
            category="KleinKit/sampling",
            description="The sigmas of FLUX.2 [klein] and FLUX 3 Klein, for the size of the picture and the number of steps.",
            search_aliases=[
                "sigmas",
                "flux2 scheduler",
                "flux3 scheduler",
                "mu",
                "time shift",
                "denoise",
                "karras",
                "beta",
                "noise schedule",
                "img2img",
                "image to image",
                "画像から画像",
                "图生图",
            ],
            inputs=[
                _number("steps", 20, 1, "The number of steps: 4 for distilled Klein, 20 to 50 for base; FLUX 3: 16 and 50."),
                _number("width", 1024, 1, "Width in pixels. Not used when a latent is connected."),
                _number("height", 1024, 1, "Height in pixels. Not used when a latent is connected."),
                _number(
                    "denoise",
                    1.0,
                    0.01,
                    "How much of the picture is made anew: 1 all, 0 nothing. diffusers calls it strength. denoise_mode says "
                    "how it is counted.",
                ),
                io.Combo.Input(
                    "denoise_mode",
                    options=list(DENOISE_MODES),
                    default=DENOISE_MODES[0],
                    tooltip="What denoise below 1 means. ksampler: as KSampler, the last steps of a longer schedule. "
                    "strength: as diffusers, only the last part of the steps is run. sigma: all steps, from "
                    "sigma = denoise down, so that 0.5 really starts half way. In each, mu is that of `steps`.",
                ),
                shift_input(SHIFT_CHOICES),
                io.Combo.Input(
                    "spacing",
                    options=list(SPACINGS),
                    default="uniform",
                    tooltip="How the sigmas lie between the first and the last. uniform: even before the shift, as "
                    "FLUX.2 was trained. linear_quadratic depends on steps and denoise alone.",
                ),
                _number("terminal", 0.0, 0.01, "Stretch the sigmas so that the last above 0 has this value. 0: off."),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The latent that is sampled. Its size counts, not width and height."
                ),
                io.Model.Input("model", optional=True, tooltip="The model that is sampled: `auto` of `shift` goes by it."),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="steps + 1 sigmas, falling to 0."),
                io.Float.Output(display_name="mu", tooltip="The amount of the time shift."),
            ],
        )

    @classmethod
    def validate_inputs(cls, terminal: float | None = None, shift: Any = False) -> bool | str:
        # ComfyUI checks what is not named here, and repeats an answer at all that is named and arrives. A `shift` that is
        # not in the list does not arrive: so one more is named. One that is linked arrives as None.
        return no_choice("shift", SHIFT_CHOICES) if shift is False else True

    @classmethod
    def execute(
        cls,
        steps: int,
        width: int,
        height: int,
        denoise: float,
        denoise_mode: str,
        shift: dict[str, Any],
        spacing: str,
        terminal: float,
        latent: dict[str, Any] | None = None,
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        size = {"width": width, "height": height} if latent is None else {}
        schedule = Schedule(
            steps=steps,
            denoise=denoise,
            denoise_mode=denoise_mode,
            shift=chosen_shift(shift, model),
            spacing=spacing,
            terminal=terminal,
            **size,
        )
        tokens = picture_tokens(width, height) if latent is None else latent_tokens(sampled(latent).shape)
        if warning := beyond_fit(schedule.shift, tokens, steps):
            logging.warning("Klein Scheduler: %s", warning)
        sigmas, mu = make(schedule, tokens)
        return io.NodeOutput(torch.from_numpy(sigmas), mu)


@names_itself
class KleinKitDynamicShift(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KleinKitDynamicShift",
            display_name="Klein Dynamic Shift",
            category="KleinKit/sampling",
            description="KSampler and every stock scheduler get the sigmas of FLUX.2 [klein]: when sampling begins, "
            "mu for the size and the steps of this run takes the place of the model's fixed shift.",
            search_aliases=["ModelSamplingFlux", "mu", "time shift", "flux2 shift", "sigmas", "KSampler"],
            inputs=[io.Model.Input("model", tooltip="A FLUX.2 model."), shift_input(DYNAMIC_CHOICES)],
            outputs=[io.Model.Output(tooltip="The model whose sigmas follow the size and the steps.")],
        )

    @classmethod
    def validate_inputs(cls, model: Any = None, shift: Any = False) -> bool | str:
        # `model` is named because ComfyUI reports an answer only at inputs that arrive; a linked `shift` arrives as None.
        return no_choice("shift", DYNAMIC_CHOICES) if shift is False else True

    @classmethod
    def execute(cls, model: ModelPatcher, shift: dict[str, Any]) -> io.NodeOutput:
        if (family := family_of_model(model.model)) and family.shift == FLUX3:
            raise ValueError(f"{family.name} has one shift for every size: remove this node.")
        if not isinstance(model.model, Flux2):
            raise expected("model", "a FLUX.2 model", type(model.model).__name__)
        earlier = model.get_model_object("model_sampling")
        if isinstance(earlier, RunShift):
            earlier = earlier.earlier
        if not (isinstance(earlier, (ModelSamplingFlux, ModelSamplingDiscreteFlow)) and isinstance(earlier, CONST)):
            raise expected(
                "model", "a model with flow sampling (its own, ModelSamplingFlux or ModelSamplingSD3)", type(earlier).__name__
            )
        patched, sampling = model.clone(), with_run_shift(own_sampling(model), earlier)
        patched.add_object_patch("model_sampling", sampling)
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER)
        wrapper = partial(shift_run, sampling, chosen_shift(shift))
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, wrapper)
        return io.NodeOutput(patched)


NODES = [KleinKitScheduler, KleinKitDynamicShift]
