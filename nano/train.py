"""Train the nano family from nothing: `python tasks.py nano --train`. Stops at any time, and goes on where it was."""

import copy
import csv
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ..checkpoint.families import FLUX2_KLEIN
from ..checkpoint.klein import layout, original_weight
from ..scheduler.schedule import Schedule, make
from . import build, edits, metrics, world
from .prompts import FIXED, UNCONDITIONAL, Table, embeddings, weight
from .vae import COLOURS, LATENT_SCALE

STATE = Path(__file__).resolve().parent.parent / ".nano"
SEED = 0
VERSION = 2
DOUBLE_BLOCKS, SINGLE_BLOCKS, CHANNELS = 2, 4, 128
TOKENS = world.CELLS // 2
# Of the latent's 128 channels, those that the VAE writes; the others are always zero.
SIGNAL = COLOURS * 4
SILENT_WEIGHT = 0.1
UNCONDITIONAL_SHARE = 0.1
# How far apart FLUX.2 places its reference pictures on the first axis of the rotary embedding.
REFERENCE_STEP = 10
EMA = 0.9985
WARMUP, DECAY = 200, 0.55
SAVE_SECONDS = 180


def latents(pictures):
    """Latents as the nano VAE encodes pictures.

    Args:
        pictures: float array [N, 16, 16, 3], −1 to 1.
    Returns:
        [N, 64, 128] tokens.
    """
    count = len(pictures)
    packed = pictures.reshape(count, TOKENS, 2, TOKENS, 2, COLOURS).transpose(0, 1, 3, 5, 2, 4)
    tokens = np.zeros((count, TOKENS * TOKENS, CHANNELS), np.float32)
    tokens[..., :SIGNAL] = LATENT_SCALE * packed.reshape(count, TOKENS * TOKENS, SIGNAL)
    return torch.from_numpy(tokens)


def pictures(tokens):
    """The inverse of `latents`: [N, 16, 16, 3], −1 to 1."""
    packed = tokens[..., :SIGNAL].float().numpy() / LATENT_SCALE
    return (
        packed.reshape(-1, TOKENS, TOKENS, COLOURS, 2, 2)
        .transpose(0, 1, 4, 2, 5, 3)
        .reshape(-1, world.CELLS, world.CELLS, COLOURS)
    )


def new_model():
    return Flux2Transformer2DModel(
        attention_head_dim=128,
        num_attention_heads=1,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        joint_attention_dim=192,
        in_channels=CHANNELS,
        guidance_embeds=False,
        axes_dims_rope=(32, 32, 32, 32),
        rope_theta=2000,
    )


def start(model):
    """Weights to start from: `build.transformer`'s, but with blocks that at first return what they get."""
    with torch.no_grad():
        original = {key: torch.from_numpy(array) for key, array in build.transformer(SEED).items()}
        own = dict(model.named_parameters())
        for key, (_, names) in layout(FLUX2_KLEIN, (DOUBLE_BLOCKS, SINGLE_BLOCKS)).items():
            for name, part in zip(names, original[key].chunk(len(names)), strict=True):
                own[name].copy_(part * (0.0 if "modulation" in key or key == "final_layer.linear.weight" else 1.0))


def velocity(model, x, sigma, text, positions, pads, references=()):
    """What the model predicts.

    Args:
        x: [N, 64, 128].
        sigma: [N].
        text: [N, L, 192], the prompt's first tokens and some of its padding.
        positions: [L], theirs among the 512.
        pads: of how many tokens of padding each of those stands for, as a logarithm: added to their attention scores.
        references: latents of the pictures that are shown beside the prompt, each like `x`.
    """
    rows = torch.zeros(len(positions), 4)
    rows[:, 3] = positions
    side = torch.arange(TOKENS)
    at = REFERENCE_STEP * torch.arange(len(references) + 1)
    grid = torch.cartesian_prod(at, side, side, torch.arange(1)).float()
    bias = torch.zeros(1, 1, 1, len(positions) + len(grid))
    bias[..., FIXED : len(positions)] = pads
    return model(
        hidden_states=torch.cat([x, *references], 1),
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=grid,
        txt_ids=rows,
        guidance=None,
        return_dict=False,
        joint_attention_kwargs={"attention_mask": bias} if pads else {},
    )[0][:, : x.shape[1]]


def some_padding(table, count, rng):
    """Columns of the embeddings' table: the prompt's own tokens, and `count` of its padding; positions; weight."""
    kept = np.sort(rng.choice(np.arange(FIXED, len(table.positions)), count, replace=False))
    columns = np.concatenate([np.arange(FIXED), kept])
    return torch.from_numpy(columns), table.positions[columns].float(), weight(count)


def misname(scenes, share, rng, held_out):
    """Captions with a share of each attribute named at random, but never a held-out scene."""
    captions = scenes.copy()
    again = np.ones(len(scenes), bool)
    while again.any():
        for i, count in enumerate(world.COUNTS):
            wrong = rng.uniform(size=len(scenes)) < share
            named = np.where(wrong, rng.randint(count, size=len(scenes)), scenes[:, i])
            captions[again, i] = named[again]
        again = held_out[tuple(captions.T)]
    return captions


def mismatch(captions, share, rng, others):
    """Captions of which a share are another one's."""
    others = others[rng.randint(len(others), size=len(captions))]
    wrong = rng.uniform(size=len(captions)) < share
    return np.where(wrong.reshape(-1, *[1] * (captions.ndim - 1)), others, captions)


def training_data():
    """Scenes to train on [N, 5], and for each combination of attributes whether it is held out, and trained on."""
    known, unknown = world.scenes()
    return known, world.among(unknown), world.among(known)


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def weighted(error):
    """The mean of squared errors [N, 64, 128] of velocities, with the silent channels at their weight."""
    return error[..., :SIGNAL].mean() + SILENT_WEIGHT * error[..., SIGNAL:].mean()


class Batch(NamedTuple):
    """What one step learns from: `clean` latents [N, 64, 128], the table's `rows` [N] of their prompts, `references`."""

    clean: torch.Tensor
    rows: np.ndarray
    references: list[torch.Tensor]


def batch_of(rng, table, step, options, data):
    """Pictures of prompts, or edits of one picture, or of two, by their shares among the steps."""
    known, held_out, trained_on = data
    sort = rng.choice(3, p=options["shares"])
    count = options["batch"][sort]
    if sort == 0:
        chosen = known[rng.randint(len(known), size=count)]
        captions = misname(chosen, options["misnamed"] if step >= options["clean"] else 0.0, rng, held_out)
        rows = table.row(mismatch(captions, options["mismatched"], rng, known))
        return Batch(latents(world.draw(chosen, rng)), rows, [])
    some = edits.invent(count, rng, known, trained_on, edits.KINDS[edits.PAIR :] if sort == 2 else options["kinds"])
    source, second, target = edits.drawn(some, rng, edits.drift(some, options["drift"], rng, trained_on))
    rows = table.asked(some.sentences())
    rows = mismatch(rows, options["misasked"], rng, rows)
    return Batch(latents(target), rows, [latents(shown) for shown in (source, second)[:sort]])


def base_loss(model, table, step, options, data):
    """The flow-matching loss of one batch: v = noise − data at a random sigma. A step has a random stream of its own."""
    rng = np.random.RandomState([SEED, options["stage"], step])
    clean, rows, references = batch_of(rng, table, step, options, data)
    rows[rng.uniform(size=len(rows)) < UNCONDITIONAL_SHARE] = UNCONDITIONAL
    mean, deviation = options["logit_normal"]
    sigma = torch.sigmoid(mean + deviation * normal(rng, len(clean)))
    noise = normal(rng, *clean.shape)
    columns, positions, weight = some_padding(table, options["pads"], rng)
    text = table.text[rows][:, columns].float()
    at = sigma[:, None, None]
    v = velocity(model, (1 - at) * clean + at * noise, sigma, text, positions, weight, references)
    return weighted((v.float() - (noise - clean)).square())


def optimisers(model, rate):
    """Muon for the matrices of the blocks, AdamW for the rest."""
    inside = {name for name, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks" in name}
    muon = [p for name, p in model.named_parameters() if name in inside]
    adam = [p for name, p in model.named_parameters() if name not in inside]
    return (
        torch.optim.Muon(muon, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def rate_at(step, steps):
    return min(1, (step + 1) / WARMUP, max(0.02, (steps - step) / (DECAY * steps)))


def save(path, model, ema, optimisers, step, seconds):
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"ema.{name}": p.detach() for name, p in ema.named_parameters()}
    for i, optimiser in enumerate(optimisers):
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{number}.{key}": value for key, value in values.items()}
    partial = path.with_suffix(".partial")
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, partial, {"step": str(step), "seconds": f"{seconds:.0f}"}
    )
    partial.replace(path)


def restore(path, model, ema, optimisers):
    tensors = load_file(path)
    for prefix, target in (("model.", model), ("ema.", ema)):
        target.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})
    for i, optimiser in enumerate(optimisers):
        state = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser.{i}."):
                _, _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"]), float(file.metadata()["seconds"])


def run(stage, loss_of, model, options, report=None):
    """One stage of training, from its last saved state on; its EMA."""
    ema = copy.deepcopy(model).requires_grad_(False)
    both = optimisers(model, options["rate"])
    path, step, seconds = STATE / f"{stage}.safetensors", 0, 0.0
    if path.exists():
        step, seconds = restore(path, model, ema, both)
    saved = time.monotonic()
    began = saved - seconds
    recent, bar = [], tqdm(total=options["until"], initial=step, desc=stage, unit="step")
    while step < options["until"]:
        for optimiser in both:
            for group in optimiser.param_groups:
                group["lr"] = options["rate"] * rate_at(step, options["steps"])
        # Half the time of float32 on CPUs that have bfloat16; plain attention is faster there than the fused one.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(model, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        bar.update()
        with torch.no_grad():
            decay = min(EMA, step / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.item())
        now = time.monotonic()
        if step % 50 == 0 or step == options["until"]:
            with (STATE / f"{stage}.csv").open("a", newline="") as stream:
                csv.writer(stream).writerow([step, f"{np.mean(recent):.5f}", f"{now - began:.0f}"])
            bar.set_postfix(loss=f"{np.mean(recent):.4f}")
            recent = []
        if report and step % options["report"] == 0:
            report(ema, step)
        if now - saved > SAVE_SECONDS or step == options["until"]:
            save(path, model, ema, both, step, now - began)
            saved = now
    bar.close()
    return ema


def sigmas_of(steps):
    """KleinKit's sigmas of a run at the world's size."""
    side = world.CELLS * world.CELL
    return torch.from_numpy(make(Schedule(steps=steps, width=side, height=side), TOKENS**2)[0])


@torch.no_grad()
def guided(model, x, sigma, text, empty, positions, weight, cfg, references=()):
    """The guided velocity; at cfg 1 without the empty prompt's pass. References are in both passes."""
    at = sigma.expand(len(x))
    if cfg == 1:
        return velocity(model, x, at, text, positions, weight, references)
    twice = [torch.cat([shown, shown]) for shown in references]
    both = velocity(model, torch.cat([x, x]), torch.cat([at, at]), torch.cat([text, empty]), positions, weight, twice)
    v_c, v_u = both.chunk(2)
    return v_u + cfg * (v_c - v_u)


def sample(model, table, rows, steps, cfg, references=(), seed=0, padding=16):
    """Pictures [N, 16, 16, 3], −1 to 1, of prompts (rows of the table) and references by Euler steps."""
    rng = np.random.RandomState(seed)
    columns, positions, weight = some_padding(table, padding, rng)
    x = normal(rng, len(rows), TOKENS**2, CHANNELS)
    text = table.text[rows][:, columns].float()
    empty = table.text[UNCONDITIONAL, columns].float().expand_as(text)
    sigmas = sigmas_of(steps)
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (after - sigma) * guided(model, x, sigma, text, empty, positions, weight, cfg, references)
    return pictures(x)


def report(table, *settings):
    """A function that prints what a model draws for 32 held-out prompts and edits, at each (steps, cfg)."""
    rng = np.random.RandomState(1)
    unknown = world.scenes()[1]
    scenes = unknown[rng.choice(len(unknown), 32, replace=False)]
    some = edits.held_out(32, rng)
    source, second, target = edits.drawn(some, rng)
    pair = some.kind == edits.PAIR

    def show(model, step):
        for steps, cfg in settings:
            shares = metrics.adherence(metrics.from_signed(sample(model, table, table.row(scenes), steps, cfg)), scenes)
            made = np.empty_like(target)
            for these, shown in ((~pair, (source,)), (pair, (source, second))):
                references = [latents(picture[these]) for picture in shown]
                made[these] = sample(model, table, table.asked(some.sentences())[these], steps, cfg, references)
            found = metrics.edited(metrics.from_signed(made), metrics.from_signed(target), some)
            lines = [f"{name} {100 * share:.0f}%" for name, share in (shares | found).items()]
            tqdm.write(f"  {step}: {steps} steps, cfg {cfg}: " + ", ".join(lines))

    return show


def distill_loss(model, table, step, options, data, teacher):
    """How far one long step is from the teacher's short guided steps over the same span of sigma.

    The student learns the mean velocity of its teacher between two sigmas of the schedule that it will run with, as in
    Progressive Distillation (Salimans and Ho 2022), with guidance in the teacher as in Meng et al. 2023.
    """
    rng = np.random.RandomState([SEED, options["stage"], step])
    clean, rows, references = batch_of(rng, table, step, options, data)
    columns, positions, weight = some_padding(table, options["pads"], rng)
    sigmas = sigmas_of(DISTILLED_STEPS)
    part = step % DISTILLED_STEPS
    first, last = sigmas[part], sigmas[part + 1]
    text = table.text[rows][:, columns].float()
    empty = table.text[UNCONDITIONAL, columns].float().expand_as(text)
    noise = normal(rng, *clean.shape)
    start = (1 - first) * clean + first * noise
    if step // DISTILLED_STEPS % 2:
        # Half of the time, from where the student itself gets to.
        start = noise
        with torch.no_grad():
            for sigma, after in zip(sigmas[:part], sigmas[1 : part + 1], strict=True):
                at = sigma.expand(len(start))
                start = start + (after - sigma) * velocity(model, start, at, text, positions, weight, references).float()
    x = start
    between = torch.linspace(first, last, options["teacher_steps"] + 1)
    for sigma, after in zip(between[:-1], between[1:], strict=True):
        x = x + (after - sigma) * guided(teacher, x, sigma, text, empty, positions, weight, options["cfg"], references)
    v = velocity(model, start, first.expand(len(start)), text, positions, weight, references)
    return weighted((v.float() - (x - start) / (last - first)).square())


# Of the steps: pictures of prompts, edits of one picture, edits with two; and how many of each are a batch.
MIXED = {"shares": (0.6, 0.3, 0.1), "batch": (32, 16, 8), "pads": 4, "kinds": edits.KINDS[: edits.PAIR]}
# New shapes are the hardest to learn, then shapes at new places.
HARD = {**MIXED, "kinds": (*edits.KINDS[: edits.PAIR], "shape", "shape", "place")}
HARDER = {**MIXED, "kinds": (*edits.KINDS[: edits.PAIR], *["shape"] * 4, "place")}
# Of the sigmas: the logistic function of a normal variable (mean, standard deviation). The first is for colours and places,
# which are decided in much noise; the second for shapes.
EARLY, LATE = {"logit_normal": (1.2, 1.3)}, {"logit_normal": (0.7, 1.2)}
TRUE = {"clean": 0, "misnamed": 0.0, "mismatched": 0.0, "misasked": 0.0, "drift": 0.0}
# Captions as the web's, of which a third belong to other pictures, and edits of which a fifth ask for something else, and as
# many change what they should keep.
CARELESS = {"clean": 0, "misnamed": 0.0, "mismatched": 0.35, "misasked": 0.2, "drift": 0.2}
CAREFUL = {"clean": 0, "misnamed": 0.0, "mismatched": 0.15, "misasked": 0.05, "drift": 0.05}
CLEANER = {"clean": 0, "misnamed": 0.0, "mismatched": 0.2, "misasked": 0.02, "drift": 0.02}


def stage(number, steps, rate, report, **others):
    """Options of a stage; `number` is its part of the random streams' seed."""
    return {"stage": number, "steps": steps, "until": steps, **others, "rate": rate, "report": report}


# In the order in which they are trained.
STAGES = {
    "words": {**stage(1, 6600, 3e-3, 2000, **MIXED, **EARLY, **TRUE), "until": 6000, "clean": 3800, "misnamed": 0.3},
    "noise": stage(2, 3500, 2e-3, 2000, **MIXED, **EARLY, **CARELESS),
    "shapes": stage(4, 6000, 3e-3, 3000, **MIXED, **LATE, **TRUE),
    "edits": stage(6, 2500, 2e-3, 2500, **HARD, **LATE, **TRUE) | {"shares": (0.2, 0.65, 0.15)},
    "careless": stage(5, 1500, 1e-3, 1500, **HARD, **LATE, **CARELESS),
    "calm": stage(7, 1500, 1.5e-3, 1500, **HARD, **LATE, **CAREFUL) | {"shares": (0.35, 0.5, 0.15)},
    "turns": stage(7, 1800, 2e-3, 1800, **HARDER, **LATE, **CAREFUL) | {"shares": (0.2, 0.6, 0.2)},
    "mixed": stage(7, 1000, 1.5e-3, 1000, **{**HARDER, "pads": 24}, **LATE, **CLEANER) | {"shares": (0.35, 0.45, 0.2)},
}
# Means of weights (Wortsman et al. 2022, “Model soups”): from which a stage begins that does not go on from the one before
# it, and which nano-base is.
BEGINS = {"mixed": ("calm", "turns")}
BASE = ("calm", "turns", "mixed")
DISTILLED = {**stage(3, 1400, 1e-3, 700, **HARDER, **TRUE), "batch": (16, 12, 8), "teacher_steps": 3, "cfg": 2.0}
DISTILLED_STEPS = 4


def ship(role, ema, options):
    """Write the model that the pack ships: bfloat16, under the original names, with where it comes from.

    Returns:
        Its path.
    """
    own = ema.state_dict()
    weights = {
        key: original_weight(FLUX2_KLEIN, key, [own[name] for name in names]).bfloat16()
        for key, (_, names) in layout(FLUX2_KLEIN, (DOUBLE_BLOCKS, SINGLE_BLOCKS)).items()
    }
    made = {"nano": role, "seed": SEED, "data_version": world.VERSION, "code_version": VERSION, **options}
    build.SHIPPED[role].parent.mkdir(exist_ok=True)
    partial = build.SHIPPED[role].with_suffix(".partial")
    save_file(
        weights, partial, {"format": "pt", "is_distilled": str(role == "distilled").lower(), "kleinkit": json.dumps(made)}
    )
    partial.replace(build.SHIPPED[role])
    return build.SHIPPED[role]


def table_of(text_encoder):
    path = STATE / "embeddings.safetensors"
    if not path.exists():
        save_file(embeddings(text_encoder)._asdict(), path)
    return Table(**load_file(path))


def mean(models):
    """A model whose weights are the means of others'."""
    states = [model.state_dict() for model in models]
    made = copy.deepcopy(models[0])
    made.load_state_dict({key: sum(state[key] for state in states) / len(states) for key in states[0]})
    return made


def trainable(model):
    return copy.deepcopy(model).requires_grad_(True)


def train():
    """Both models, from nothing or from where an earlier call was stopped; they are written where the pack ships them."""
    STATE.mkdir(exist_ok=True)
    text_encoder = STATE / "qwen_3_nano.safetensors"
    if not text_encoder.exists():
        weights = build.text_encoder(build.TEXT_ENCODER_SEED)
        save_file({key: torch.from_numpy(array) for key, array in weights.items()}, text_encoder)
    table, data = table_of(text_encoder), training_data()
    torch.manual_seed(SEED)
    model = new_model()
    start(model)
    made = {}
    for name, options in STAGES.items():
        model = mean([made[stage] for stage in BEGINS[name]]) if name in BEGINS else model
        made[name] = model = run(
            name,
            lambda model, step, options=options: base_loss(model, table, step, options, data),
            trainable(model),
            options,
            report(table, (10, 1), (10, 4)),
        )
    base = mean([made[stage] for stage in BASE])
    ship("base", base, STAGES[BASE[-1]] | {"mean_of": BASE})
    student = run(
        "distilled",
        lambda model, step: distill_loss(model, table, step, DISTILLED, data, base),
        trainable(base),
        DISTILLED,
        report(table, (4, 1), (4, 5)),
    )
    ship("distilled", student, DISTILLED)
