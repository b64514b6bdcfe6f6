"""What one sampling run knows. It lives in the run's own copy of `model_options`, and is gone with it."""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..guidance.plan import step_index
from ..guidance.rule import COND, UNCOND, Rule, Step
from .samplers import CALLS_BETWEEN, OWN_SIGMAS

if TYPE_CHECKING:
    from .watch import Watch

RUN = "kleinkit_run"
ROLES = {"positive": COND, "negative": UNCOND}
AMBIGUOUS, OTHER = "", "other"
LATENT, RESULT = "latent", "result"


class ModelCall(NamedTuple):
    """One call of the model: the uuid of each pass in it and its place in the batch, and the blocks that ran, all passes
    together; None where they cannot be counted."""

    rows: tuple[tuple[Any, int], ...]
    blocks: int | None


@dataclass
class Run:
    """The state of one run.

    Attributes:
        sigmas: of the run.
        rules: of the model.
        sampler: name of the sampler's function, "" where it has none.
        comfyui_s: whether that function is ComfyUI's own, with no other pack's around it.
        hooks: how many post-CFG functions there are before the sampler adds its own.
        flow_map: whether the model is one, and so asks where each step goes.
        follows_from: the step from which on every model call is at its step's sigma; see `follows_from` of `samplers`.
        watch: what records the run for a probe, or None.
        step, index, model_options: of the model call in progress, and the step of the one before.
        conds: of the guider, by prompt, as ComfyUI's samplers have them.
        roles: what each conditioning is to the guider, by its uuid: `COND`, `UNCOND` or an extra pass.
        used: the scale that the sampler used in this call, None before it did.
        observed, seen, pending: what rules observed, by node: numbers that count in this step, those that have been read, and
            scalars on the device.
        latest, known: the passes of the negative's prompt that ran in the last guided step, beside the positive: up to this
            call, and before this step.
        entered: by step, `observed` and `known` when the sampler first came to it.
        reused: the scales of the calls so far in which guidance was reused.
        memories: each rule's own dict, by node.
        entries: hidden states that the positive or negative pass of this call left for an extra pass, by name.
        asked, acted: nodes of the rules that were to mix the attention in this call, and of those that did.
        reached: the extra passes of which the model has let the first block be replaced.
        model_calls: of this step's call so far; several devices append to it at once.
        finite: whether the latent, the passes and the result of this call are; booleans on the device.
        unread: `(step, finite)` of the calls since the device was last asked.
        presumed: `(step, sigma on the device)` of those whose sigma was not read.
        total: how many passes of each kind ran so far.
        done, calls, between: the last step that the sampler says is done, model calls since it said so, and how many it
            makes from one such word to the next.
        warned: topics of what was said.
    """

    sigmas: list[float]
    rules: tuple[Rule, ...]
    sampler: str
    comfyui_s: bool
    hooks: int
    flow_map: bool = False
    follows_from: float = math.inf
    watch: "Watch | None" = None
    step: Step | None = None
    index: int | None = None
    model_options: dict = field(default_factory=dict)
    conds: dict[str, list[dict]] = field(default_factory=dict)
    roles: dict[Any, str] = field(default_factory=dict)
    used: float | None = None
    observed: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    pending: dict[str, torch.Tensor] = field(default_factory=dict)
    latest: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    entered: dict[int, tuple[dict[str, float], frozenset[str]]] = field(default_factory=dict)
    reused: list[float] = field(default_factory=list)
    memories: dict[str, dict] = field(default_factory=dict)
    entries: dict[str, dict] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    acted: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    model_calls: list[ModelCall] = field(default_factory=list)
    finite: dict[str, torch.Tensor] = field(default_factory=dict)
    unread: list[tuple[Step, dict[str, torch.Tensor]]] = field(default_factory=list)
    presumed: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    total: Counter = field(default_factory=Counter)
    done: int = -1
    calls: int = 0
    between: int = 1
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.memories = {rule.node: {} for rule in self.rules}
        self.between = CALLS_BETWEEN.get(self.sampler, 1)

    def warn(self, sentence: str, topic: str | None = None) -> None:
        """Log a sentence once a run: once a topic, where it has one."""
        if (topic or sentence) not in self.warned:
            self.warned.add(topic or sentence)
            logging.warning("KleinKit: %s", sentence)

    def sigma_of(self, timestep: torch.Tensor) -> float:
        """The sigma of a model call, read from the device where the order of calls does not tell, or a rule observed something.

        Args:
            timestep: [B], of the call.
        """
        step, sigma = self.done + 1, timestep.flatten()[0]
        told = not self.calls and self.follows_from <= step < len(self.sigmas) - 1 and timestep.dtype == torch.float32
        if told and not self.pending:
            self.presumed.append((step, sigma))
            return self.sigmas[step]
        return self.read(sigma)[0]

    def read(self, *scalars: torch.Tensor) -> list[float]:
        """Bring scalars to the host, together with all that is on the device for us: at most one synchronisation.

        Returns:
            The scalars as floats.
        """
        checks = [(step, name, whole) for step, finite in self.unread for name, whole in finite.items()]
        sigmas = [sigma for _, sigma in self.presumed]
        tensors = (*scalars, *self.pending.values(), *sigmas, *(whole for *_, whole in checks))
        values = iter(torch.stack([tensor.float() for tensor in tensors]).tolist() if tensors else ())
        floats = [next(values) for _ in scalars]
        self.seen |= {node: next(values) for node in self.pending}
        for (step, _), sigma in zip(self.presumed, values):
            if sigma != self.sigmas[step]:
                self.warn_not_followed(step, sigma)
        broken = [(step, name) for (step, name, _), whole in zip(checks, values) if not whole]
        for step in (step for step, name in broken if name == RESULT):
            self.warn_not_finite([name for other, name in broken if other is step], step.index, step.sigma)
        for known in (self.pending, self.presumed, self.unread):
            known.clear()
        return floats

    def warn_not_followed(self, step: int, sigma: float) -> None:
        """Say once a run that a call was at another sigma than its step's, and believe its order no longer."""
        self.follows_from = math.inf
        self.warn(
            f"Another node made the model's sigma {sigma:.4g} in step {step + 1} of {len(self.sigmas) - 1}, without a word to "
            f"others. Guidance went by the sampler's, {self.sigmas[step]:.4g}.",
            topic="sigma",
        )

    def warn_not_finite(self, broken: list[str], index: int, sigma: float) -> None:
        """Say once a run that the result of a step is NaN or infinite; `broken` has the names of all that is."""
        self.warn(
            f"NaN or infinity {source(broken)} step {index + 1} of {len(self.sigmas) - 1}, at sigma {sigma:.4g}. "
            f"Expect a black picture. Guidance: {titles(self.rules) or 'plain CFG'}.",
            topic="NaN",
        )

    def enter(self, sigma: float) -> int:
        """The step of a model call; what was observed and ran in earlier steps counts from here on."""
        counted, over = None, 0
        if self.sampler not in OWN_SIGMAS:
            first = self.done + 1 if self.done < 0 or self.calls >= self.between - 1 else self.done
            counted = first, self.done + 1
            # ComfyUI's own samplers may come to a step's sigma once more after they said that it is done (sa_solver_pece).
            over = self.done if self.comfyui_s else first
        index = step_index(sigma, self.sigmas, self.index, counted, over)
        # Some samplers go back to a step after the next one (heunpp2): it stays as it was.
        self.observed, self.known = self.entered.setdefault(index, (dict(self.seen), self.latest))
        self.calls += 1
        self.index = index
        return index

    def step_done(self, index: int) -> None:
        """The sampler's callback: it has come to this step."""
        if self.done >= 0:
            self.between = max(self.calls, 1)
        self.done, self.calls = index, 0

    def began(self, conds: dict[str, list[dict]]) -> None:
        """Forget the call before, and learn which conditioning is what."""
        self.entries.clear()
        self.asked.clear()
        self.acted.clear()
        self.model_calls.clear()
        self.used = None
        self.conds, self.roles = conds, {}
        for name, entries in conds.items():
            role = ROLES.get(name, name)
            for cond in entries or ():
                # Areas are copied from one prompt to the other with their uuid: such a one tells nothing.
                self.roles[cond["uuid"]] = role if self.roles.get(cond["uuid"], role) == role else AMBIGUOUS

    def learn(self, positive: list[dict] | None, negative: list[dict] | None) -> None:
        """Where a guider has names of its own for its prompts, the sampler's hook tells which is which."""
        for name, entries in (("positive", positive), ("negative", negative)):
            if name not in self.conds:
                known = {cond["uuid"]: ROLES[name] for cond in entries or ()}
                self.roles |= {uuid: role for uuid, role in known.items() if self.roles.get(uuid) in self.conds}

    def role(self, uuid: Any, index: int) -> str:
        """What a conditioning in the batch of passes is: `COND`, `UNCOND`, an extra pass, or what its guider calls it."""
        role = self.roles.get(uuid, OTHER)
        if role is not AMBIGUOUS:
            return role
        return UNCOND if index or (self.step and self.step.passes == (UNCOND,)) else COND

    def is_of(self, prompt: str, uuid: Any, index: int) -> bool:
        """Whether a conditioning is of a prompt, `COND` or `UNCOND`, for the sampler's pass or for one of a rule."""
        role = self.role(uuid, index)
        return role == prompt or any(extra.of == prompt and extra.name == role for rule in self.rules for extra in rule.passes)

    def ran(self) -> Counter:
        """How many passes of each kind ran in this call."""
        return Counter(self.role(*row) for call in self.model_calls for row in call.rows)

    def blocks(self, name: str) -> list[int | None]:
        """How many blocks ran in each model call of a pass; None where they cannot be counted."""
        return [call.blocks for call in self.model_calls if name in (self.role(*row) for row in call.rows)]

    def served(self, name: str) -> bool:
        """Whether a cache answered for the model's blocks in a pass of this call."""
        return 0 in self.blocks(name)

    def ended(self) -> None:
        """Add this call to the run's total."""
        self.total += self.ran()
        self.model_calls.clear()


def source(broken: list[str]) -> str:
    """Where a result that is not finite comes from, of the names that `Run.finite` has."""
    if LATENT in broken:
        return "in the latent before"
    passes = ", ".join(name for name in broken if name != RESULT)
    return f"from the model ({passes}) in" if passes else "from finite predictions in"


def at_sigma(conds: Iterable[dict], sigma: float) -> list[dict]:
    """Of ComfyUI's conditionings those that count at a sigma: some are for other steps."""
    return [cond for cond in conds if cond.get("timestep_end", 0.0) <= sigma <= cond.get("timestep_start", math.inf)]


def is_whole(cond: dict) -> bool:
    """Whether a conditioning is for the whole picture."""
    return not cond.keys() & {"area", "mask"}


def titles(rules: Iterable[Rule]) -> str:
    """The nodes of rules, as they stand on the canvas."""
    return ", ".join(rule.title for rule in rules)


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """A boolean on the device."""
    return tensor.isfinite().all()


def run_of(model_options: dict) -> Run | None:
    """The run that options belong to, or None outside of one."""
    return model_options.get("transformer_options", {}).get(RUN)
