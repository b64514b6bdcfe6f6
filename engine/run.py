"""What one sampling run knows. It lives in the run's own copy of `model_options`, and is gone with it."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..guidance.plan import step_index
from ..guidance.rule import COND, UNCOND, Rule, Step
from .samplers import CALLS_BETWEEN, OWN_SIGMAS, UNEVEN, asking, calls_in_a_step

if TYPE_CHECKING:
    from .watch import Watch

RUN, RULES = "kleinkit_run", "kleinkit_rules"
# Hooks that combine a positive with a negative: in a step of one pass they would get zeros for the other.
COMBINING = ("sampler_cfg_function", "sampler_pre_cfg_function")
# Hooks that come after these.
POST = "sampler_post_cfg_function"
ROLES = {"positive": COND, "negative": UNCOND}
AMBIGUOUS, OTHER = "", "other"
LATENT, RESULT = "latent", "result"


class ModelCall(NamedTuple):
    """One call of the model: the uuid of each pass in it and its place in the batch, and the blocks that ran, all passes
    together; None where they cannot be counted."""

    rows: tuple[tuple[Any, int], ...]
    blocks: int | None


def rows_in(transformer_options: dict) -> tuple[tuple[Any, int], ...]:
    """The uuid of each pass that ComfyUI puts into a batch, and its place."""
    indices = transformer_options.get("cond_or_uncond", (0,))
    return tuple(zip(transformer_options.get("uuids", (None,) * len(indices)), indices))


@dataclass
class Run:
    """The state of one run.

    Attributes:
        sigmas: of the run.
        rules: of the model.
        sampler: name of the sampler's function, "" where it has none.
        comfyui_s: whether that function is ComfyUI's own, with no other pack's around it.
        hooks: how many post-CFG functions there are before the sampler adds its own.
        batch: the pictures of the run.
        flow_map: whether the model is one, and so asks where each step goes.
        follows_from: the step from which on every model call is at its step's sigma; see `follows_from` of `samplers`.
        watch: what records the run for a probe, or None.
        step, index, model_options: of the model call in progress, and the step of the one before.
        negative_model: where the guider runs the negative on a model of its own, that model.
        conds: of the guider, by prompt, as ComfyUI's samplers have them.
        roles: what each conditioning is to the guider, by its uuid: `COND`, `UNCOND` or an extra pass.
        unknown: what one is whose uuid is not among them.
        used: the scale that the sampler used in this call, None before it did.
        observed, seen, pending: what rules observed, by node: numbers that count in this step, those that have been read, and
            scalars on the device.
        latest, known: the passes of the negative's prompt that ran in the last guided step, beside the positive: up to this
            call, and before this step.
        entered: by step, `observed` and `known` when the sampler first came to it.
        reused: the scales of the calls so far in which guidance was reused.
        memories: each rule's own dict, by node.
        keeps: what has the sampler's own passes leave `entries`: `(model, transformer options) → transformer options`.
        entries: hidden states that the positive or negative pass of this call left for an extra pass, by name.
        asked, acted: nodes of the rules that were to mix the attention in this call, and of those that did.
        mixes: whether another node's attention has asked which rows of a batch are whose.
        reached: the extra passes of which the model has let the first block be replaced.
        model_calls: of this step's call so far; several devices append to it at once.
        parts: of a batch that another node gives the model in parts, how many passes it has given so far.
        finite: whether the latent, the passes and the result of this call are; booleans on the device.
        unread: `(step, finite)` of the calls since the device was last asked.
        presumed: `(step, sigma on the device)` of those whose sigma was not read.
        total, cached: how many passes of each kind ran so far, and how many of all a cache answered.
        done, calls, between: the last step that the sampler says is done, model calls since it said so, and how many it
            makes from one such word to the next.
        warned: topics of what was said.
    """

    sigmas: list[float]
    rules: tuple[Rule, ...]
    sampler: str
    comfyui_s: bool
    hooks: int
    batch: int = 1
    flow_map: bool = False
    follows_from: float = math.inf
    watch: "Watch | None" = None
    step: Step | None = None
    index: int | None = None
    model_options: dict = field(default_factory=dict)
    negative_model: Any = None
    conds: dict[str, list[dict]] = field(default_factory=dict)
    roles: dict[Any, str] = field(default_factory=dict)
    unknown: str = OTHER
    used: float | None = None
    observed: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    pending: dict[str, torch.Tensor] = field(default_factory=dict)
    latest: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    entered: dict[int, tuple[dict[str, float], frozenset[str]]] = field(default_factory=dict)
    reused: list[float] = field(default_factory=list)
    memories: dict[str, dict] = field(default_factory=dict)
    keeps: list[Callable[[Any, dict], dict]] = field(default_factory=list)
    entries: dict[str, dict] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    acted: set[str] = field(default_factory=set)
    mixes: bool = False
    reached: set[str] = field(default_factory=set)
    model_calls: list[ModelCall] = field(default_factory=list)
    parts: Counter = field(default_factory=Counter)
    finite: dict[str, torch.Tensor] = field(default_factory=dict)
    unread: list[tuple[Step, dict[str, torch.Tensor]]] = field(default_factory=list)
    presumed: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    total: Counter = field(default_factory=Counter)
    cached: int = 0
    done: int = -1
    calls: int = 0
    between: int = 1
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.memories = {rule.node: {} for rule in self.rules}
        self.between = CALLS_BETWEEN.get(self.sampler, 1)

    def __deepcopy__(self, memo: dict) -> "Run":
        """The run itself: another node may copy the options, and the run is still one."""
        return self

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
        inner = "" if self.comfyui_s else asking()
        if inner not in OWN_SIGMAS:
            if self.begins_again(sigma):
                self.forget()
            between = calls_in_a_step(inner)
            first = self.done + 1 if self.done < 0 or self.calls >= (between or self.between) - 1 else self.done
            # What another pack has put around a sampler may alter its sigmas, but not the order of its calls.
            counted = first, first if between else self.done + 1
            # ComfyUI's own samplers may come to a step's sigma once more after they said that it is done (sa_solver_pece).
            over = self.done if self.comfyui_s or inner in UNEVEN else first
        index = step_index(sigma, self.sigmas, self.index, counted, over)
        # Some samplers go back to a step after the next one (heunpp2): it stays as it was.
        self.observed, self.known = self.entered.setdefault(index, (dict(self.seen), self.latest))
        self.calls += 1
        self.index = index
        return index

    def begins_again(self, sigma: float) -> bool:
        """Whether another node has the sampler begin again: all steps are done, and a call is in the first one."""
        first, second = self.sigmas[:2]
        return self.done == len(self.sigmas) - 2 > 0 and abs(sigma - first) < abs(second - first)

    def forget(self) -> None:
        """Know nothing of the steps any more."""
        self.index, self.latest, self.done, self.calls = None, frozenset(), -1, 0
        for known in (self.observed, self.seen, self.pending, self.entered, *self.memories.values()):
            known.clear()

    def step_done(self, index: int) -> None:
        """The sampler's callback: it has come to this step."""
        if self.done >= 0:
            self.between = max(self.calls, 1)
        self.done, self.calls = index, 0

    def began(self, conds: dict[str, list[dict]], plain: bool) -> None:
        """Forget the call before, and learn which conditioning is what.

        Args:
            conds: of the guider.
            plain: whether it is ComfyUI's CFGGuider, whose places tell of a conditioning that another node has made anew.
        """
        self.keeps.clear()
        self.entries.clear()
        self.asked.clear()
        self.acted.clear()
        self.model_calls.clear()
        self.parts.clear()
        self.used = None
        self.conds, self.roles, self.unknown = conds, {}, AMBIGUOUS if plain else OTHER
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
        role = self.roles.get(uuid, self.unknown)
        if role is not AMBIGUOUS:
            return role
        return UNCOND if index or (self.step and self.step.passes == (UNCOND,)) else COND

    def rows_of(self, transformer_options: dict, size: int) -> tuple[tuple[Any, int], ...]:
        """The passes of one model call, of which another node may give the model a part of a batch, or each several times.

        Args:
            transformer_options: of the call, which name the passes of the whole batch.
            size: how many pictures the call has.
        """
        rows, passes = rows_in(transformer_options), max(1, size // self.batch)
        if passes >= len(rows):
            return rows * (passes // len(rows))
        first = self.parts[rows] % len(rows)
        self.parts[rows] += passes
        return rows[first : first + passes]

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
        # A pass that begins at its last block and skips it runs no block either.
        answered = (self.role(*row) for call in self.model_calls if call.blocks == 0 for row in call.rows)
        self.cached += sum(role in (COND, UNCOND) for role in answered)
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


def as_list(hooks: Callable | list | None) -> list[Callable]:
    """The functions of one of ComfyUI's options, which has one, several or none."""
    return hooks if isinstance(hooks, list) else [hooks] if hooks else []


def name_of(function: Callable) -> str:
    """Where a function comes from, for a message."""
    # ComfyUI's own extra nodes have the path of their file for a module.
    module = re.split(r"[/\\]", getattr(function, "__module__", ""))[-1]
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """A boolean on the device."""
    return tensor.isfinite().all()


def run_of(model_options: dict) -> Run | None:
    """The run that options belong to, or None outside of one."""
    return model_options.get("transformer_options", {}).get(RUN)
