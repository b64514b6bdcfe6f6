"""A model sampling whose shift is the run's mu, and the wrapper that gives the run its sigmas."""

import copy
import logging
import math
from contextlib import contextmanager
from functools import partial

import comfy.samplers
import numpy as np
import torch
from comfy.model_sampling import ModelSamplingFlux

from ..checks import in_node
from ..scheduler import stock
from ..scheduler.schedule import in_float32
from ..scheduler.shift import time_shift
from .latent import latent_tokens


class PercentSigma(float):
    """The sigma of a percent, asked for before a run: the static one, but in comparisons that of the run in progress.

    Nodes such as SkipLayerGuidanceDiT turn percents into sigmas when they execute, and compare them at every step.
    """

    def now(self):
        return float(self.sampling.percent_to_sigma(self.percent))

    def __lt__(self, other):
        return self.now() < other

    def __le__(self, other):
        return self.now() <= other

    def __gt__(self, other):
        return self.now() > other

    def __ge__(self, other):
        return self.now() >= other

    def __deepcopy__(self, memo):
        return self

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        def plain(value):
            return value.now() if isinstance(value, cls) else value

        return function(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


class RunShift:
    """Mixin of a flow model's sampling that takes the place of `static` and equals it, but for the time of a run."""

    run = None

    def percent_to_sigma(self, percent):
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
    def during(self, mu, schedule):
        """Inside, the sampling is that of a model of shift `mu`, and percents are those of a schedule's steps."""
        before = self.run, self.shift, self.sigmas
        self.run, self.shift = (mu, schedule), mu if isinstance(self, ModelSamplingFlux) else math.exp(mu)
        table = time_shift(self.static.sigmas.cpu().double().numpy(), mu - own_mu(self.static))
        self.sigmas = torch.from_numpy(table).to(self.sigmas)
        try:
            yield
        finally:
            self.run, self.shift, self.sigmas = before


def own_mu(static):
    """mu of a model's own, static shift: ModelSamplingFlux keeps mu, ModelSamplingDiscreteFlow e^mu."""
    return static.shift if isinstance(static, ModelSamplingFlux) else math.log(static.shift)


def with_run_shift(static):
    """A copy of a flow model's sampling that is a `RunShift`."""
    shifted = copy.deepcopy(static)
    shifted.__class__ = type("KleinKitSampling", (RunShift, type(static)), {})
    object.__setattr__(shifted, "static", static)  # not a submodule, which would be moved and counted a second time
    return shifted


def whole_schedule(sigmas):
    """The schedule that sigmas were cut from: KSampler, BasicScheduler and SplitSigmas all make views of it.

    Returns:
        `(schedule, start)`: float32 array, and the place of the first sigma in it.
    """
    if sigmas.stride() != (1,):
        return sigmas.float().cpu().numpy(), 0
    size = sigmas.untyped_storage().nbytes() // sigmas.element_size()
    return sigmas.as_strided((size,), (1,), 0).float().cpu().numpy(), sigmas.storage_offset()


def falls(sigmas):
    return sigmas[0] <= 1.0 and sigmas[-1] == 0.0 and (np.diff(sigmas) <= 0.0).all()


def shifted_schedule(sampling, shift, tokens, sigmas):
    """The sigmas of a run, with mu in the place of the model's own shift when a stock scheduler made them with that.

    Args:
        sampling: a `RunShift`.
        shift: `(tokens, steps) → mu`.
        tokens: int.
        sigmas: the run's, float32 tensor [n + 1].
    Returns:
        `(sigmas, mu, schedule)`: the run's sigmas, and the float32 array that they are a part of.
    """

    def make(of, name, steps):
        return comfy.samplers.calculate_sigmas(of, name, steps).cpu().numpy()

    static = sampling.static
    schedule, start = whole_schedule(sigmas)
    stop = start + len(sigmas)
    found = stock.find(schedule, stop - 1, tuple(comfy.samplers.SCHEDULER_HANDLERS), partial(make, static))
    if not (found and falls(found[2])):
        if not falls(schedule):
            schedule = np.sort(schedule[start:stop])[::-1]
        logging.info(
            "Klein Dynamic Shift: these sigmas are of no scheduler in KSampler's list with the model's own "
            "shift, and stay as they are."
        )
        return sigmas, shift(tokens, len(schedule) - 1), schedule
    name, asked, made, index = found
    steps = len(made) - 1
    mu = shift(tokens, steps)
    with sampling.during(own_mu(static) + 1.0, made):
        bends = not np.array_equal(make(sampling, name, asked), made)
    if name == "simple":
        # The even steps that it looks up in a table.
        made = in_float32(time_shift(np.linspace(1.0, 0.0, steps + 1), mu))
    elif bends:
        made = in_float32(time_shift(made.astype(np.float64), mu - own_mu(static)))
    logging.info("Klein Dynamic Shift: mu %.4f for %d tokens and %d steps.", mu, tokens, steps)
    return torch.from_numpy(made[index[start:stop]]).to(sigmas), mu, made


def shift_run(sampling, shift, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """OUTER_SAMPLE wrapper that shifts the sigmas of a run by its own mu.

    Args:
        sampling: the patched model's, a `RunShift`.
        shift: `(tokens, steps) → mu`.
        executor, noise, …: as of ComfyUI's `CFGGuider.outer_sample`.
    """
    if executor.class_obj.model_patcher.get_model_object("model_sampling") is not sampling:
        logging.warning("Klein Dynamic Shift: a later node replaced the model's sampling, and its shift counts.")
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    with in_node("KleinKitDynamicShift"):
        sigmas, mu, schedule = shifted_schedule(sampling, shift, latent_tokens(noise.shape), sigmas)
    with sampling.during(mu, schedule):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
