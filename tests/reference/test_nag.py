"""Klein NAG against its paper's formula in diffusers' transformer, and against ComfyUI's own node."""

import threading
from contextlib import contextmanager

import pytest
import torch
from diffusers.models.transformers import transformer_flux2
from kleinkit.nano.build import transformer as weights
from kleinkit.nano.in_comfyui import random_klein
from sampling import (
    comfy_run,
    conditioning,
    diffusers_run,
    diffusers_transformer,
    diffusers_velocity,
    embeddings,
    far,
    latent_noise,
    with_nodes,
)

SIGMAS = torch.tensor([1.0, 0.8, 0.0])
SHAPE = {"double_blocks": 1, "single_blocks": 2}
LIMIT = 1e-5
SCALE, TAU, ALPHA = 5.0, 2.5, 0.25
POSITIVE, NEGATIVE = embeddings(192, 1), embeddings(192, 2)
NOISE = latent_noise(32, 48, batch=2)
REFERENCES = [latent_noise(32, 32, seed=3), latent_noise(16, 32, seed=4)]


def settings(**changes):
    return dict(scale=SCALE, tau=TAU, alpha=ALPHA, start=0.0, end=1.0) | changes


def mixed(positive, negative):
    """The paper's equations 7 to 10, [B, tokens, channels] in float64."""
    guided = positive + (SCALE - 1) * (positive - negative)
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    return ALPHA * guided * ratio.clamp(max=TAU) / ratio + (1 - ALPHA) * positive


@contextmanager
def paper(text_tokens):
    """Inside, diffusers' attention gives the image of the batch's two halves, positive and negative, the same mixed output."""
    attention = transformer_flux2.dispatch_attention_fn

    def both(*args, **kwargs):
        out = attention(*args, **kwargs)
        image = out[:, text_tokens:].flatten(2).double()
        image = mixed(*image.chunk(2)).to(out.dtype).repeat(2, 1, 1)
        return torch.cat([out[:, :text_tokens], image.unflatten(2, out.shape[2:])], dim=1)

    transformer_flux2.dispatch_attention_fn = both
    try:
        yield
    finally:
        transformer_flux2.dispatch_attention_fn = attention


@pytest.fixture(scope="module")
def transformer():
    return diffusers_transformer({key: torch.from_numpy(array) for key, array in weights(0, **SHAPE).items()})


@pytest.fixture(scope="module")
def klein(comfy):
    return random_klein(**SHAPE)


def prompts(references=(), positive=POSITIVE, negative=NEGATIVE):
    values = {"reference_latents": list(references)} if references else {}
    return conditioning(positive, **values), conditioning(negative, **values)


@pytest.mark.parametrize("count", [0, 1, 2], ids="{} references".format)
def test_whole_runs_are_the_papers(transformer, klein, run_node, count):
    text = torch.cat([POSITIVE.expand(2, -1, -1), NEGATIVE.expand(2, -1, -1)])

    def velocity(x, sigma, step):
        with paper(text.shape[1]):
            return diffusers_velocity(transformer, x.repeat(2, 1, 1, 1), sigma, text, REFERENCES[:count])[: len(x)]

    theirs = diffusers_run(SIGMAS, NOISE, velocity)
    model = with_nodes(run_node, klein, ("KleinKitNAG", settings()))
    ours = comfy_run(model, SIGMAS, NOISE, *prompts(REFERENCES[:count]), 1.0)
    plain = comfy_run(klein, SIGMAS, NOISE, *prompts(REFERENCES[:count]), 1.0)
    assert far(ours, theirs) <= LIMIT
    assert far(plain, theirs) > 100 * LIMIT


@pytest.mark.parametrize("cfg", [1.0, 4.0], ids="cfg {}".format)
def test_comfyuis_node_where_it_acts(klein, run_node, cfg):
    """ComfyUI's node runs both prompts in each step and mixes both: at cfg 1 the positive is the same as ours."""
    core = run_node("NAGuidance", model=klein, nag_scale=SCALE, nag_alpha=ALPHA, nag_tau=TAU)[0]
    theirs = comfy_run(core, SIGMAS, NOISE, *prompts(REFERENCES[:1]), cfg)
    ours = comfy_run(with_nodes(run_node, klein, ("KleinKitNAG", settings())), SIGMAS, NOISE, *prompts(REFERENCES[:1]), cfg)
    if cfg == 1.0:
        assert far(ours, theirs) <= LIMIT
    else:
        # Theirs puts the mixed image into the negative's pass too, so that little of cfg is left.
        assert far(ours, theirs) > 100 * LIMIT


@pytest.mark.parametrize(
    "values", [{"scale": 1.0}, {"alpha": 0.0}, {"start": 0.6, "end": 0.9}], ids=["scale 1", "alpha 0", "no step in range"]
)
def test_neutral_settings_change_no_bit(klein, run_node, values):
    model = with_nodes(run_node, klein, ("KleinKitNAG", settings(**values)))
    plain, ours = (comfy_run(one, SIGMAS, NOISE, *prompts(), 1.0) for one in (klein, model))
    assert torch.equal(ours, plain)


def test_steps_outside_the_range_are_plain(klein, run_node):
    seen = {}
    model = with_nodes(run_node, klein, ("KleinKitNAG", settings(start=0.5)))
    for name, one in (("plain", klein), ("nag", model)):
        seen[name] = []
        comfy_run(one, SIGMAS, NOISE, *prompts(), 1.0, callback=lambda i, x0, x, n, to=seen[name]: to.append(x0.clone()))
    first, second = zip(seen["plain"], seen["nag"], strict=True)
    assert torch.equal(*first)
    assert far(*second) > 100 * LIMIT


def by_hand(transformer, x, sigma, positive, negative):
    """A velocity with texts that share no batch: two runs of the transformer that hand each other the image's attention."""
    turn, outputs, results = threading.Barrier(2), {}, {}
    attention = transformer_flux2.dispatch_attention_fn
    tokens = {}

    def both(*args, **kwargs):
        me = threading.current_thread().name
        out = attention(*args, **kwargs)
        outputs[me] = out[:, tokens[me] :].flatten(2).double()
        turn.wait()
        image = mixed(outputs["positive"], outputs["negative"]).to(out.dtype)
        turn.wait()
        return torch.cat([out[:, : tokens[me]], image.unflatten(2, out.shape[2:])], dim=1)

    def run(name, text):
        tokens[name] = text.shape[1]
        results[name] = diffusers_velocity(transformer, x, sigma, text.expand(len(x), -1, -1))

    transformer_flux2.dispatch_attention_fn = both
    try:
        pair = {"positive": positive, "negative": negative}
        threads = [threading.Thread(target=run, args=item, name=item[0]) for item in pair.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        transformer_flux2.dispatch_attention_fn = attention
    return results["positive"]


@pytest.mark.parametrize("tokens", [(512, 700), (700, 512)], ids=["longer negative", "longer positive"])
def test_texts_of_different_lengths(transformer, klein, run_node, tokens):
    """Each text stands at the positions that it would have alone."""
    positive, negative = (torch.cat([embeddings(192, seed), embeddings(192, seed + 10)], dim=1)[:, :count]
                          for seed, count in zip((1, 2), tokens))  # fmt: skip
    ours = comfy_run(
        with_nodes(run_node, klein, ("KleinKitNAG", settings())), SIGMAS, NOISE, *prompts((), positive, negative), 1.0
    )
    theirs = diffusers_run(SIGMAS, NOISE, lambda x, sigma, step: by_hand(transformer, x, sigma, positive, negative))
    assert far(ours, theirs) <= LIMIT
