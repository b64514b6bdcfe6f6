"""What is known of ComfyUI's sampling functions, so that a run need not ask the device at which sigma it is."""

import inspect
import math

import comfy.k_diffusion.sampling
from comfy.patcher_extension import WrapperExecutor
from comfy.samplers import KSAMPLER, CFGGuider

# Model calls between two callbacks, where it is more than one.
CALLS_BETWEEN = {
    "sample_dpm_2": 2,
    "sample_dpm_2_ancestral": 2,
    "sample_dpm_2_ancestral_RF": 2,
    "sample_dpmpp_2s_ancestral": 2,
    "sample_dpmpp_2s_ancestral_RF": 2,
    "sample_dpmpp_2s_ancestral_cfg_pp": 2,
    "sample_dpmpp_sde": 2,
    "sample_dpmpp_sde_gpu": 2,
    "sample_exp_heun_2_x0": 2,
    "sample_exp_heun_2_x0_sde": 2,
    "sample_seeds_2": 2,
    "sample_seeds_3": 3,
}
# Of these, the samplers whose calls between two callbacks are all in one step. The others' last one is in the next.
IN_ONE_STEP = {f"sample_{name}" for name in ("dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "seeds_2", "seeds_3")}
# Samplers that do not call the model in every step as in the one before.
UNEVEN = "sample_heunpp2", "sample_sa_solver_pece"
# Samplers that go by sigmas of their own, so that their count is not the run's.
OWN_SIGMAS = ("sample_dpm_fast", "sample_dpm_adaptive")
# Samplers that call the model once a step, at the step's sigma, and then the callback.
FOLLOWING = {
    f"sample_{name}"
    for name in (
        "euler",
        "euler_cfg_pp",
        "euler_ancestral",
        "euler_ancestral_cfg_pp",
        "lms",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "ddpm",
        "lcm",
        "ipndm",
        "ipndm_v",
        "deis",
        "res_multistep",
        "res_multistep_cfg_pp",
        "res_multistep_ancestral",
        "res_multistep_ancestral_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
    )
}
# The same, but that on a flow model they begin a little below sigma 1.
FOLLOWING_AFTER_THE_FIRST = {
    f"sample_{name}"
    for name in (
        "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu",
        "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu",
        "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu",
        "er_sde",
        "sa_solver",
    )
}

# In KSampler's list: those that call the model once a step under another function's name, or at a sigma a little off.
ONCE_TOO = "ddim", "uni_pc", "uni_pc_bh2"


def asks_once(name: str) -> bool:
    """Whether the sampler of this name in KSampler's list asks once a step, and only for the passes that cfg needs."""
    return name in ONCE_TOO or (f"sample_{name}" in FOLLOWING | FOLLOWING_AFTER_THE_FIRST and "cfg_pp" not in name)


def is_comfyui_s(function: object) -> bool:
    """Whether a sampling function is ComfyUI's own, with no other pack's around it."""
    module = getattr(function, "__globals__", {}).get("__name__")
    if module == "torch.utils._contextlib":
        return is_comfyui_s(getattr(function, "__wrapped__", None))
    return module == comfy.k_diffusion.sampling.__name__


def asking() -> str:
    """The name of ComfyUI's sampling function that asks for this model call, whatever is around it; "" where none does."""
    name, frame = "", inspect.currentframe()
    while frame := frame.f_back:
        if frame.f_globals.get("__name__") == comfy.k_diffusion.sampling.__name__:
            name = frame.f_code.co_name
    return name


def calls_in_a_step(name: str) -> int | None:
    """How often a sampling function of ComfyUI calls the model in a step; None where that cannot be told.

    Args:
        name: what `asking` returns.
    """
    if not name or name in UNEVEN:
        return None
    return CALLS_BETWEEN[name] if name in IN_ONE_STEP else 1


def follows_from(executor: WrapperExecutor, guider: CFGGuider) -> float:
    """The step from which on every model call of a run is at the step's own sigma.

    Args:
        executor: of a SAMPLER_SAMPLE wrapper: who else changes the run, and the sampler.
        guider: of the run.
    Returns:
        0 or 1; infinity where that cannot be known, as with a sampler that calls the model several times a step, one of
        another pack, or a node that may change what the sampler or the model is given.
    """
    sampler, kind = executor.class_obj, type(guider)
    function = getattr(sampler, "sampler_function", None)
    asks = kind.__call__ is CFGGuider.__call__ and kind.outer_predict_noise is CFGGuider.outer_predict_noise
    alone = executor.idx == len(executor.wrappers) - 1
    if not (type(sampler) is KSAMPLER and asks and alone and is_comfyui_s(function)) or sampler.extra_options.get("s_churn"):
        return math.inf
    name = getattr(function, "__name__", "")
    return 0 if name in FOLLOWING else 1 if name in FOLLOWING_AFTER_THE_FIRST else math.inf
