"""Sigmas that follow the size and the step count of the picture."""

import torch
from comfy_api.latest import io

from ..scheduler.checks import expected
from ..scheduler.mu import SHIFTS
from ..scheduler.schedule import (DENOISE_MODES, LIMITS, PIXELS_PER_TOKEN_SIDE, Schedule, choose_shift, make,
                                  multiple_of_16)
from ..scheduler.checks import number
from ..scheduler.spacing import SPACINGS
from .errors import names_itself

LATENT_CHANNELS = 128
OTHER_LATENTS = {
    (4, 4): "Stable Diffusion 1.5 or SDXL",
    (4, 16): "FLUX.1, Stable Diffusion 3 or Z-Image",
    (5, 16): "a video model such as Wan 2.1 or HunyuanVideo, or of Qwen-Image",
    (5, 48): "Wan 2.2",
    (5, 128): "LTX-Video",
}


def _number(id, default, step, tooltip):
    low, high = LIMITS[id]
    kind = io.Int if isinstance(default, int) else io.Float
    return kind.Input(id, default=default, min=low, max=high, step=step, tooltip=tooltip)


def shift_input():
    """The input `shift`: how mu is found, with the inputs that each way brings."""
    inputs = {
        "flux1": [
            _number("base_shift", 0.5, 0.01, "mu of a 256×256 picture (256 tokens)."),
            _number("max_shift", 1.15, 0.01, "mu of a 1024×1024 picture (4096 tokens)."),
        ],
        "fixed": [_number("mu", 1.15, 0.01, "The same mu for every size and step count. 0 shifts nothing.")],
        "linear": [_number("shift", 3.0, 0.01, "s of σ' = sσ/(1+(s−1)σ), as in ModelSamplingSD3. 1 shifts nothing.")],
    }
    return io.DynamicCombo.Input(
        "shift",
        options=[io.DynamicCombo.Option(choice, inputs.get(choice, [])) for choice in SHIFTS],
        tooltip="How much of the run is spent at high noise. flux2: Black Forest Labs' formula for FLUX.2, from size and "
                "steps. flux2_continuous: the same without its jump just above 1 megapixel. flux1: FLUX.1's. fixed: your "
                "own mu. linear: Stable Diffusion 3's shift. none: even steps.",
    )


def latent_tokens(shape):
    """The number of 16×16 cells of a FLUX.2 latent of `shape` [B, 128, H/16, W/16].

    Raises:
        ValueError: it is no FLUX.2 latent; the message says whose it looks like.
    """
    if len(shape) == 4 and shape[1] == LATENT_CHANNELS:
        return shape[2] * shape[3]
    other = OTHER_LATENTS.get((len(shape), shape[1]) if len(shape) > 1 else None, "another model")
    fits = f"a FLUX.2 latent [batch, {LATENT_CHANNELS}, height/16, width/16], as of EmptyFlux2LatentImage or VAEEncode"
    raise ValueError(f"{expected('latent', fits, list(shape))} It looks like a latent of {other}.")


@names_itself
class KleinKitScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KleinKitScheduler",
            display_name="Klein Scheduler",
            category="KleinKit/sampling",
            description="The sigmas of FLUX.2 [klein], for the size of the picture and the number of steps.",
            search_aliases=["sigmas", "flux2 scheduler", "mu", "time shift", "denoise", "karras", "beta", "noise schedule"],
            inputs=[
                _number("steps", 20, 1, "The number of steps: 4 for distilled Klein, 20 to 50 for base."),
                _number("width", 1024, 16, "Width of the picture in pixels, a multiple of 16. A connected latent wins."),
                _number("height", 1024, 16, "Height of the picture in pixels, a multiple of 16. A connected latent wins."),
                _number("denoise", 1.0, 0.01, "How much of the picture is made anew: 1 all, 0 nothing (image to image)."),
                io.Combo.Input(
                    "denoise_mode", options=list(DENOISE_MODES), default=DENOISE_MODES[0],
                    tooltip="What denoise below 1 means. ksampler: as KSampler, the last steps of a longer schedule. "
                            "strength: as diffusers, only the last part of the steps is run. sigma: all steps, from "
                            "sigma = denoise down, so that 0.5 really starts half way.",
                ),
                shift_input(),
                io.Combo.Input(
                    "spacing", options=list(SPACINGS), default="uniform",
                    tooltip="How the sigmas lie between the first and the last. uniform: even before the shift, as "
                            "FLUX.2 was trained. linear_quadratic depends on steps and denoise alone.",
                ),
                _number("terminal", 0.0, 0.01, "Stretch the sigmas so that the last above 0 has this value. 0: off."),
                io.Latent.Input("latent", optional=True, tooltip="The latent that is sampled; its size wins."),
            ],
            outputs=[io.Sigmas.Output(tooltip="steps + 1 sigmas, falling to 0."),
                     io.Float.Output(display_name="mu", tooltip="The amount of the time shift.")],
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None):
        try:
            for name, value in (("width", width), ("height", height)):
                if value is not None:
                    number(name, value, *LIMITS[name])
                    multiple_of_16(name, value)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, steps, width, height, denoise, denoise_mode, shift, spacing, terminal, latent=None):
        choice = dict(shift)
        schedule = Schedule(steps, width, height, denoise, denoise_mode, choose_shift(choice.pop("shift"), **choice),
                            spacing, terminal)
        tokens = (width // PIXELS_PER_TOKEN_SIDE) * (height // PIXELS_PER_TOKEN_SIDE)
        if latent is not None:
            tokens = latent_tokens(latent["samples"].shape)
        sigmas, mu = make(schedule, tokens)
        return io.NodeOutput(torch.from_numpy(sigmas), mu)


NODES = [KleinKitScheduler]
