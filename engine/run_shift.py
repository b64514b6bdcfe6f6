"""A model sampling whose shift is the run's mu, and the wrapper that gives the run its sigmas."""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingFlux

from ..checks import in_node
from ..scheduler import stock
from ..scheduler.mu import Shift, beyond_fit
from ..scheduler.schedule import in_float32
from ..scheduler.shift import time_shift
from .latent import latent_tokens

NODE = "Klein Dynamic Shift"
# What FlipSigmas writes for a 0 at the start.
FLIPPED_ZERO = np.float32(0.0001)


class PercentSigma(float):
    """The sigma of a percent, asked for before a run: the static one, but in comparisons that of the run in progress.

    Nodes such as SkipLayerGuidanceDiT turn percents into sigmas when they execute, and compare them at every step
    (docs/decisions/percent-sigma.md).
    """

    def now(self) -> float:
        """The sigma of the percent in the run in progress; without one, the static sigma."""
        return float(self.sampling.percent_to_sigma(self.percent))

    def __lt__(self, other: Any) -> bool:
        return self.now() < other

    def __le__(self, other: Any) -> bool:
        return self.now() <= other

    def __gt__(self, other: Any) -> bool:
        return self.now() > other

    def __ge__(self, other: Any) -> bool:
        return self.now() >= other

    def __deepcopy__(self, memo: dict) -> "PercentSigma":
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.now() if isinstance(value, cls) else value

        return function(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


class RunShift:
    """Mixin of a flow model's sampling. It equals `static`, the model's own, except during a run.

    `earlier` is the sampling that a node before ours gave the model; without one it is `static`.
    """

    run = None

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of the run, 0.0 to 1.0: during a run, of its own schedule."""
        if not 0.0 < percent < 1.0:
            return super().percent_to_sigma(percent)
        if self.run is None:
            sigma = PercentSigma(super().percent_to_sigma(percent))
            sigma.sampling, sigma.percent = self, percent
            return sigma
        mu, schedule = self.run
        steps = len(schedule) - 1
        even = np.interp(percent * steps, np.arange(steps + 1), time_shift(schedule.astype(np.float64), -mu))
        # In float32, as the run's sigmas: a range that begins at a step includes it.
        return float(np.float32(time_shift(even, mu)))

    @contextmanager
    def during(self, mu: float, schedule: np.ndarray) -> Iterator[None]:
        """Inside, the sampling is that of a model of shift `mu`, and percents are those of the steps of `schedule`."""
        before = self.run, self.shift, self.sigmas
        self.run, self.shift = (mu, schedule), mu if isinstance(self, ModelSamplingFlux) else math.exp(mu)
        table = time_shift(self.static.sigmas.cpu().double().numpy(), mu - own_mu(self.static))
        self.sigmas = torch.from_numpy(table).to(self.sigmas)
        try:
            yield
        finally:
            self.run, self.shift, self.sigmas = before


def own_mu(static: torch.nn.Module) -> float:
    """mu of a static shift: ModelSamplingFlux keeps mu, ModelSamplingDiscreteFlow e^mu."""
    return static.shift if isinstance(static, ModelSamplingFlux) else math.log(static.shift)


def own_sampling(model: ModelPatcher) -> torch.nn.Module:
    """The sampling that a model had before any node patched it."""
    plain = model.clone()
    plain.object_patches.pop("model_sampling", None)
    return plain.get_model_object("model_sampling")


def with_run_shift(static: torch.nn.Module, earlier: torch.nn.Module) -> RunShift:
    """A copy of a flow model's sampling that is a `RunShift`."""
    shifted = copy.deepcopy(static)
    shifted.__class__ = type("KleinKitSampling", (RunShift, type(static)), {})
    for name, sampling in (("static", static), ("earlier", earlier)):
        object.__setattr__(shifted, name, sampling)  # not a submodule, which would be moved and counted a second time
    return shifted


def whole_schedule(sigmas: torch.Tensor) -> tuple[np.ndarray, int]:
    """The schedule that sigmas were cut from: KSampler, BasicScheduler and SplitSigmas all make views of it
    (docs/decisions/as-strided.md).

    Returns:
        `(schedule, start)`: float32 array, and the place of the first sigma in it.
    """
    if sigmas.stride() != (1,):
        return sigmas.float().cpu().numpy(), 0
    size = sigmas.untyped_storage().nbytes() // sigmas.element_size()
    return sigmas.as_strided((size,), (1,), 0).float().cpu().numpy(), sigmas.storage_offset()


def flipped_back(sigmas: torch.Tensor) -> torch.Tensor:
    """Rising sigmas as they were before FlipSigmas: a view of all that it flipped, where SplitSigmas has cut them since."""
    schedule, start = whole_schedule(sigmas)
    if (np.diff(schedule) < 0.0).any():
        schedule, start = sigmas.float().cpu().numpy(), 0
    falling = schedule[::-1].copy()
    if falling[-1] == FLIPPED_ZERO:
        falling[-1] = 0.0
    stop = len(falling) - start
    return torch.from_numpy(falling).to(sigmas)[stop - len(sigmas) : stop]


def falls(sigmas: np.ndarray) -> bool:
    """Whether sigmas are a schedule of a flow model: from at most 1.0 down to 0.0."""
    return bool(sigmas[0] <= 1.0 and sigmas[-1] == 0.0 and (np.diff(sigmas) <= 0.0).all())


def starts_from_a_picture(sigmas: torch.Tensor, noise: torch.Tensor) -> bool:
    """Whether a run that begins in the middle of its schedule begins there by a denoise below 1.

    Else it goes on with another run, of which it must keep the schedule. The sigmas of the two are the same views. The
    KSampler that cut them knows which it was; of other samplers, one that adds noise starts from a picture.

    Args:
        sigmas: the run's.
        noise: what is added to the latent.
    """
    frame = inspect.currentframe()
    while frame := frame.f_back:
        sampler = frame.f_locals.get("self")
        if isinstance(sampler, comfy.samplers.KSampler) and same_storage(sampler.sigmas, sigmas):
            return sampler.denoise is not None and sampler.denoise < 1.0
    return bool(torch.count_nonzero(noise))


def same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are views of the same numbers."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def made_by(static: torch.nn.Module) -> Callable[[str, int], np.ndarray]:
    """What the schedulers in KSampler's list make with a sampling: `(name, steps) → float32 array`."""
    return lambda name, steps: comfy.samplers.calculate_sigmas(static, name, steps).cpu().numpy()


def made_with(sampling: RunShift, schedule: np.ndarray, last: int, flipped: bool) -> tuple[torch.nn.Module, stock.Found] | None:
    """The sampling and the scheduler that made a schedule: the model's own sampling, or that of a node before ours.

    Args:
        schedule, last: as of `stock.find`.
        flipped: whether the schedule may be only a part of a longer one.
    Returns:
        `(sampling, what stock.find returns)`, or None.
    """
    names = tuple(comfy.samplers.SCHEDULER_HANDLERS)
    for static in dict.fromkeys((sampling.static, sampling.earlier)):
        if not static.sigmas.all():
            continue
        found = stock.find(schedule, last, names, made_by(static))
        if not found and flipped and (schedule[0] < 1.0 or schedule[-1] > 0.0):
            found = stock.find_part(schedule, names, made_by(static))
        if found and falls(found[2]):
            return static, found
    return None


def shifted_schedule(
    sampling: RunShift,
    shift: Shift,
    tokens: int,
    sigmas: torch.Tensor,
    from_picture: Callable[[], bool],
    flipped: bool = False,
) -> tuple[torch.Tensor, float, np.ndarray]:
    """The sigmas of a run, with mu in the place of the model's own shift when a stock scheduler made them with that.

    Args:
        sampling: a `RunShift`.
        shift: `(tokens, steps) → mu`.
        tokens: int.
        sigmas: the run's, float32 tensor [n + 1]. They may rise, as FlipSigmas makes them: then they are shifted as
            those that fall.
        from_picture: `starts_from_a_picture` of the run.
        flipped: whether the sigmas fall because they were flipped back.
    Returns:
        `(sigmas, mu, schedule)`: the run's sigmas, and the float32 array that they are a part of.
    """
    if sigmas[-1] > sigmas[0]:
        falling = flipped_back(sigmas)
        shifted, mu, schedule = shifted_schedule(sampling, shift, tokens, falling, from_picture, flipped=True)
        if shifted is falling:
            return sigmas, mu, schedule
        rising = shifted.flip(0)
        if rising[0] == 0.0:
            rising[0] = sigmas[0]
        return rising, mu, schedule

    schedule, start = whole_schedule(sigmas)
    stop = start + len(sigmas)
    too_long = len(sigmas) - 1 > stock.MOST_STEPS
    maker = None if too_long else made_with(sampling, schedule, stop - 1, flipped)
    if not maker:
        if not falls(schedule):
            schedule = np.sort(schedule[start:stop])[::-1]
        if too_long:
            why = f"A run of more than {stock.MOST_STEPS} steps is not shifted; its sigmas"
        else:
            why = "These sigmas were not made by a KSampler scheduler with the model's default shift; they"
        logging.info("%s: %s are used unchanged.", NODE, why)
        return sigmas, shift(tokens, len(schedule) - 1), schedule

    static, (name, asked, made, index) = maker
    steps = len(made) - 1
    even = np.linspace(1.0, 0.0, steps + 1)
    if index[start] > 0 and stop == len(schedule) and from_picture():
        steps -= int(index[start])
    mu = shift(tokens, steps)
    with sampling.during(own_mu(static) + 1.0, made):
        bends = not np.array_equal(made_by(sampling)(name, asked), made)
    if name == "simple":
        # The even steps that it looks up in a table.
        made = in_float32(time_shift(even, mu))
    elif bends:
        made = in_float32(time_shift(made.astype(np.float64), mu - own_mu(static)))
    else:
        logging.info("%s: The scheduler %s does not follow a shift; its sigmas are used unchanged.", NODE, name)
        return sigmas, mu, made
    logging.info("%s: mu %.4f for %d tokens and %d steps.", NODE, mu, tokens, steps)
    if warning := beyond_fit(shift, tokens, steps):
        logging.warning("%s: %s", NODE, warning)
    return torch.from_numpy(made[index[start:stop]]).to(sigmas), mu, made


def shift_run(
    sampling: RunShift,
    shift: Shift,
    executor: Any,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper that shifts the sigmas of a run by its own mu.

    Args:
        sampling: the patched model's, a `RunShift`.
        shift: `(tokens, steps) → mu`.
        executor, noise, …: as of ComfyUI's `CFGGuider.outer_sample`.
    Returns:
        what the executor returns.
    Raises:
        ValueError: the latent is not one of FLUX.2.
    """
    if executor.class_obj.model_patcher.get_model_object("model_sampling") is not sampling:
        logging.warning("%s: A later node replaced the model's sampling. The shift of that node is used.", NODE)
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    with in_node(NODE):
        tokens = latent_tokens(noise.shape)
    from_picture = partial(starts_from_a_picture, sigmas, noise)
    sigmas, mu, schedule = shifted_schedule(sampling, shift, tokens, sigmas, from_picture)
    with sampling.during(mu, schedule):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
