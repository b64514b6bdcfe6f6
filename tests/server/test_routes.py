"""The routes of the previews on the real server: `POST /kleinkit/sigmas`, `/guidance`, …"""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from kleinkit.harness import server as api
from kleinkit.harness.workflow import NANO
from prompts import JSON, LOADER, guided
from safetensors import safe_open


@pytest.mark.parametrize("path", ["/kleinkit/sigmas", "/api/kleinkit/sigmas"])
def test_it_is_the_schedule_of_diffusers(post, path):
    status, answer = post({"steps": 50, "width": 1024, "height": 768}, path=path)
    mu = compute_empirical_mu(64 * 48, 50)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 50, 50), mu=mu)
    assert status == 200
    assert set(answer) == {"sigmas", "mu", "tokens", "step_sizes", "start", "static_sigmas", "static_mu"}
    np.testing.assert_allclose(answer["sigmas"], scheduler.sigmas, atol=1e-6)
    np.testing.assert_allclose(answer["step_sizes"], -np.diff(scheduler.sigmas), atol=1e-6)
    assert answer["mu"] == pytest.approx(mu) and answer["start"] == 1.0


def test_the_curve_for_comparison_is_that_of_the_shift_that_comfyui_gives_the_model(post, comfy):
    from comfy.model_sampling import flux_time_shift
    from comfy.supported_models import Flux2

    static = Flux2.sampling_settings["shift"]
    answer = post({"steps": 10})[1]
    wanted = [flux_time_shift(static, 1.0, step / 10) for step in range(10, 0, -1)]
    np.testing.assert_allclose(answer["static_sigmas"], [*wanted, 0.0], atol=1e-6)
    assert answer["static_mu"] == static


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps": 4, "shift": "fixed", "shift.mu": 0.7},
        {"shift": "flux1", "shift.base_shift": 0.2, "shift.max_shift": 2},
        {"shift": "linear", "shift.linear_shift": 5.0},
        {"denoise": 0.4, "denoise_mode": "sigma", "spacing": "beta"},
        {"denoise": 0.4, "terminal": 0.1},
        {"denoise": 0.4, "denoise_mode": "strength", "spacing": "karras"},
    ],
    ids=str,
)
def test_it_agrees_with_the_node_in_the_queue(server, post, settings):
    defaults = {
        "steps": 20,
        "width": 1024,
        "height": 1024,
        "denoise": 1.0,
        "denoise_mode": "ksampler",
        "shift": "flux2",
        "spacing": "uniform",
        "terminal": 0.0,
    }
    outcome = api.queue(
        server,
        {
            "1": {"class_type": "KleinKitScheduler", "inputs": {**defaults, **settings}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        },
    )
    answer = post(settings)[1]
    assert [float(text) for text in outcome.outputs["2"]["text"]] == [answer["mu"]]
    [tensor] = outcome.outputs["3"]["text"]
    shown = [float(number) for number in tensor.removeprefix("tensor([").rpartition("]")[0].split(",")]
    np.testing.assert_allclose(shown, answer["sigmas"], atol=1e-4)


@pytest.mark.parametrize("width, height, tokens", [(1024, 1024, 4096), (591, 1773, 4093), (1000, 1000, 3906), (16, 16, 1)])
def test_it_says_how_many_tokens_the_size_has(post, width, height, tokens):
    status, answer = post({"steps": 4, "width": width, "height": height})
    assert status == 200 and answer["tokens"] == tokens
    assert answer["mu"] == pytest.approx(compute_empirical_mu(tokens, 4))


def test_denoise_of_nothing(post):
    answer = post({"denoise": 0.0})[1]
    assert (answer["sigmas"], answer["step_sizes"], answer["start"], answer["static_sigmas"]) == ([], [], 0.0, [])
    assert post({"sigmas": {"denoise": 0.0}}, path="/kleinkit/guidance")[1]["total"] == 0


def test_the_most_steps(post):
    status, answer = post({"steps": 10000, "width": 16384, "height": 16384, "spacing": "beta"})
    assert status == 200 and len(answer["sigmas"]) == 10001


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"steps": 0}, "Expected `steps` to be a whole number between 1 and 10000, but got 0."),
        ({"steps": 10**9}, "Expected `steps` to be a whole number between 1 and 10000, but got 1000000000."),
        ({"steps": 4.5}, "Expected `steps` to be a whole number between 1 and 10000, but got 4.5."),
        ({"steps": True}, "Expected `steps` to be a whole number between 1 and 10000, but got True."),
        ({"steps": "20"}, "Expected `steps` to be a whole number between 1 and 10000, but got '20'."),
        ({"steps": None}, "Expected `steps` to be a whole number between 1 and 10000, but got None."),
        ({"width": [1024]}, "Expected `width` to be a whole number between 16 and 16384, but got [1024]."),
        ({"width": 15}, "Expected `width` to be a whole number between 16 and 16384, but got 15."),
        ({"height": -16}, "Expected `height` to be a whole number between 16 and 16384, but got -16."),
        ({"denoise": float("nan")}, "Expected `denoise` to be a number between 0.0 and 1.0, but got nan."),
        ({"denoise": float("inf")}, "Expected `denoise` to be a number between 0.0 and 1.0, but got inf."),
        ({"terminal": 1.0}, "Expected `terminal` to be a number between 0.0 and 0.99, but got 1.0."),
        ({"spacing": {}}, "Expected `spacing` to be one of uniform, karras, exponential, beta, linear_quadratic, but got"),
        ({"denoise_mode": "half"}, "Expected `denoise_mode` to be one of ksampler, strength, sigma, but got 'half'."),
        (
            {"shift": ["flux2"]},
            "Expected `shift` to be one of flux2, flux2_continuous, flux3, flux1, fixed, linear, none",
        ),
        ({"shift": "fixed", "shift.mu": float("nan")}, "Expected `shift.mu` to be a number between -20.0 and 20.0, but"),
        ({"shift": "fixed", "shift.mu": 1e308}, "Expected `shift.mu` to be a number between -20.0 and 20.0, but got"),
        ({"shift": "fixed", "shift.shift": 3.0}, "Expected `shift.shift` to be absent (fixed takes mu), but got 3.0."),
        ({"shift": "flux2", "shift.mu": 1.0}, "Expected `shift.mu` to be absent (flux2 takes no number), but got 1.0."),
        ({"shift.choice": "fixed"}, "Expected `shift.choice` to be absent (flux2 takes no number), but got 'fixed'."),
        ({"latent": "../../secret"}, "Expected `setting` to be one of steps, width, height"),
        ({"__class__": 1}, "Expected `setting` to be one of steps, width, height"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_do_not_fit(post, settings, sentence):
    status, answer = post(settings)
    assert status == 400 and list(answer) == ["error"]
    assert answer["error"].startswith(sentence) and len(answer["error"]) < 400


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "interval", "schedule.start": 0.2, "schedule.end": 0.7},
        {"schedule": "skip", "schedule.mode": "alternate", "schedule.guided_ratio": 0.3, "unguided": "unconditional"},
        {"schedule": "skip", "schedule.mode": "early", "schedule.guided_ratio": 0.5, "unguided": "reuse"},
        {"schedule": "diminishing", "schedule.cutoff": 0.5, "cfg": 7},
        {"schedule": "curve", "schedule.scales": "6, 1, 1"},
        {"cfg": 1.0},
    ],
    ids=str,
)
def test_guidance_agrees_with_what_the_queue_runs(server, post, settings):
    steps, size, cfg = 6, {"width": 64, "height": 64}, settings.get("cfg", 5.0)
    prompt = guided()
    nodes = {node["class_type"]: (key, node["inputs"]) for key, node in prompt.items()}
    nodes["KleinKitScheduler"][1].update(steps=steps)
    nodes["EmptyFlux2LatentImage"][1].update(size)
    nodes["SamplerCustom"][1].update(model=["cfg", 0], cfg=cfg)
    inputs = {"schedule": "constant", "unguided": "conditional", **settings}
    inputs.pop("cfg", None)
    prompt["cfg"] = {"class_type": "KleinKitCFG", "inputs": {"model": [nodes["KleinKitLoader"][0], 0], **inputs}}
    of_sigmas = {"steps": steps, **size}
    answer = post({**settings, "sigmas": of_sigmas}, path="/kleinkit/guidance")[1]
    log = api.queue(server, prompt).log
    assert f"KleinKit: {steps} steps, {answer['total']} passes (" in log
    assert sum(answer["passes"]) == answer["total"] and len(answer["cfg"]) == steps
    assert answer["plain"] == (steps if cfg == 1.0 else 2 * steps)


CHAINS = [
    [("KleinKitCFGZeroStar", {"optimized_scale": True, "zero_init_steps": 2})],
    [
        ("KleinKitSkipLayerGuidance", {"scale": 3.0, "double_layers": "0", "single_layers": "1", "start": 0.2, "end": 0.8}),
        ("KleinKitCFG", {"schedule": "interval", "schedule.start": 0.0, "schedule.end": 0.5, "unguided": "unconditional"}),
        ("KleinKitRenorm", {"mode": "token", "strength": 0.5, "shrink_only": False}),
        ("KleinKitSlerpCFG", {}),
    ],
    [("KleinKitImageCFG", {"image_scale": 2.0}), ("KleinKitCFGZeroStar", {"optimized_scale": False, "zero_init_steps": 1})],
    [
        (
            "KleinKitAutoGuidance",
            {"scale": 2.0, "double_layers": "", "single_layers": "1", "prompt": "both", "start": 0.2, "end": 1.0},
        ),
        ("KleinKitCFG", {"schedule": "interval", "schedule.start": 0.0, "schedule.end": 0.5, "unguided": "unconditional"}),
    ],
]
WITHOUT_PREVIEW = {"KleinKitSkipLayerGuidance": {"mode": "block", "rescale": 0.0}}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(node.removeprefix("KleinKit") for node, _ in chain))
@pytest.mark.parametrize("name", NANO.values())
def test_a_chain_of_rules_agrees_with_what_the_queue_runs(server, post, chain, name):
    """Also on a distilled model at cfg 5, where a step is one pass, whatever the schedule says."""
    steps, size = 5, {"width": 64, "height": 64}
    prompt = guided()
    nodes = {node["class_type"]: (key, node["inputs"]) for key, node in prompt.items()}
    loader, inputs = nodes["KleinKitLoader"]
    inputs.update(diffusion_model=name)
    nodes["KleinKitScheduler"][1].update(steps=steps)
    nodes["EmptyFlux2LatentImage"][1].update(size)
    model = [loader, 0]
    for number, (node, of_node) in enumerate(chain):
        prompt[f"rule{number}"] = {"class_type": node, "inputs": {"model": model} | WITHOUT_PREVIEW.get(node, {}) | of_node}
        model = [f"rule{number}", 0]
    sampler = nodes["SamplerCustom"][1]
    latent = [nodes["EmptyFlux2LatentImage"][0], 0]
    prompt["reference"] = {
        "class_type": "ReferenceLatent",
        "inputs": {"conditioning": sampler["negative"], "latent": latent},
    }
    sampler.update(model=model, cfg=5.0, negative=["reference", 0])
    known = post({"diffusion_model": name}, path="/kleinkit/loader")[1]
    answer = post(
        {
            "rules": [{"node": node, "inputs": of_node} for node, of_node in chain],
            "distilled": known["distilled"],
            "sigmas": {"steps": steps, **size},
        },
        path="/kleinkit/guidance",
    )[1]
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)
    assert f"KleinKit: {steps} steps, {answer['total']} passes (" in outcome.log
    assert (answer["ignored"] > 1.0) == known["distilled"] == ("counts as 1" in outcome.log)
    assert answer["plain"] == (steps if known["distilled"] else 2 * steps)


def test_rules_that_decide_during_the_run_are_named(post):
    rules = [{"node": "KleinKitAdaptiveGuidance", "inputs": {"threshold": 0.9}}]
    answers = [post({"rules": rules, "distilled": distilled}, path="/kleinkit/guidance")[1] for distilled in (False, True)]
    # Without guidance there is nothing to end.
    assert [answer["decides"] for answer in answers] == [["KleinKitAdaptiveGuidance"], []]


@pytest.mark.parametrize(
    "settings, by_sigma",
    [({"schedule": "interval", "schedule.end": 0.5}, False), ({"schedule": "diminishing"}, True), ({"cfg": 1.0}, False)],
)
def test_what_goes_by_sigma_is_told(post, settings, by_sigma):
    assert post(settings, path="/kleinkit/guidance")[1]["by_sigma"] is by_sigma


def test_of_two_rules_of_a_kind_the_later_counts(post):
    late = {"node": "KleinKitCFG", "inputs": {"schedule": "interval", "schedule.end": 0.5}}
    sigmas = {"steps": 8}
    totals = [
        post({"rules": rules, "sigmas": sigmas}, path="/kleinkit/guidance")[1]["total"]
        for rules in ([late], [late, {"node": "KleinKitCFG"}], [{"node": "KleinKitCFG"}, late])
    ]
    assert totals == [12, 16, 12]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"schedule": "never"}, "Expected `schedule` to be one of constant, interval, skip, diminishing, curve, but got"),
        ({"schedule.end": 0.5}, "Expected `schedule.end` to be absent (constant takes no input), but got 0.5."),
        ({"schedule": "interval", "schedule.end": "x"}, "Expected `end` to be above `start` (0.0) and at most 1.0, but got"),
        ({"schedule": "interval", "schedule.start": None}, "Expected `start` to be between 0.0 and 1.0, but got None."),
        ({"schedule": "skip", "schedule.mode": 3}, "Expected `mode` to be one of early, late, early_late, middle, alternate,"),
        ({"schedule": "diminishing", "schedule.cutoff": 0}, "Expected `cutoff` to be a number between 0.01 and 1.0, but"),
        ({"schedule": "curve", "schedule.scales": [5]}, "Expected `scales` to be numbers between 0 and 100, such as"),
        ({"schedule": "curve", "schedule.scales": ""}, "Expected `scales` to be numbers between 0 and 100, such as"),
        ({"unguided": "no"}, "Expected `unguided` to be one of conditional, unconditional, reuse, extrapolate, but got 'no'."),
        ({"cfg": "5"}, "Expected `cfg` to be a number between 0.0 and 100.0, but got '5'."),
        ({"sigmas": [4]}, "Expected `sigmas` to be an object of settings, but got [4]."),
        ({"sigmas": {"steps": 0}}, "Expected `steps` to be a whole number between 1 and 10000, but got 0."),
        (
            {"model": 1},
            "Expected `setting` to be one of schedule, unguided, rules, distilled, cfg, sampler, sigmas, but got 'model'.",
        ),
        ({"distilled": 1}, "Expected `distilled` to be true or false, but got 1."),
        ({"rules": {}}, "Expected `rules` to be a list of at most 16 nodes, but got {}."),
        ({"rules": ["KleinKitCFG"]}, "Expected `rules` to be objects of `node` and `inputs`, but got 'KleinKitCFG'."),
        ({"rules": [{"node": "KleinKitCFG", "x": 1}]}, "Expected `rules` to be objects of `node` and `inputs`, but got {"),
        ({"rules": [{"node": ["KleinKitCFG"]}]}, "Expected `node` to be one of KleinKitCFG, KleinKitSkipLayerGuidance, "),
        ({"rules": [{"node": "KleinKitRenorm", "inputs": []}]}, "Expected `inputs` to be an object of settings, but got []."),
        (
            {"rules": [{"node": "KleinKitRenorm", "inputs": {"strength": 2}}]},
            "Klein Renorm: Expected `strength` to be a number between 0.0 and 1.0, but got 2.",
        ),
        (
            {"rules": [{"node": "KleinKitRenorm", "inputs": {"model": 2}}]},
            "Klein Renorm: Expected `input` to be one of mode, strength, shrink_only, but got 'model'.",
        ),
        (
            {"rules": [{"node": "KleinKitSkipLayerGuidance", "inputs": {"single_layers": "1000"}}]},
            "Klein Skip-Layer Guidance: Expected `single_layers` to be layers such as `9` or `7-9, 12`, but got '1000'.",
        ),
        ({"rules": [{"node": "KleinKitSlerpCFG"}, {"node": "KleinKitImageCFG"}]}, "Klein"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_guidance_settings_that_do_not_fit(post, settings, sentence):
    status, answer = post(settings, path="/kleinkit/guidance")
    assert status == 400 and list(answer) == ["error"]
    assert answer["error"].startswith(sentence) and len(answer["error"]) < 400


@pytest.mark.parametrize("variant", ["auto", "base", "distilled"])
@pytest.mark.parametrize("name", NANO.values())
def test_what_suits_a_file_is_what_the_loader_gives(server, post, name, variant):
    outcome = api.queue(
        server,
        {
            "1": {
                "class_type": "KleinKitLoader",
                "inputs": {
                    "diffusion_model": name,
                    "text_encoder": "auto",
                    "vae": "auto",
                    "variant": variant,
                    "weight_dtype": "default",
                    "distilled_cfg": "ignore",
                    "trim_text_encoder": True,
                },
            },
            "steps": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
            "cfg": {"class_type": "PreviewAny", "inputs": {"source": ["1", 4]}},
        },
    )
    shown = {key: float(outcome.outputs[key]["text"][0]) for key in ("steps", "cfg")}
    status, answer = post({"diffusion_model": name, "variant": variant}, path="/kleinkit/loader")
    assert status == 200 and {key: answer[key] for key in shown} == shown
    assert answer["distilled"] == (shown["cfg"] == 1.0)
    file = server.base / "models" / "diffusion_models" / name
    with safe_open(file, "np") as tensors:
        blocks = {tuple(key.split(".")[:2]) for key in list(tensors.keys())}
    counts = [sum(kind == f"{of}_blocks" for kind, *_ in blocks) for of in ("double", "single")]
    assert [answer["double_layers"], answer["single_layers"]] == counts


@pytest.mark.parametrize(
    "settings, answer",
    [
        ({}, ([], [])),
        ({"double_layers": "1-3, 2", "single_layers": " 9,, 12"}, ([1, 2, 3], [9, 12])),
        ({"single_layers": "19", "counts": {"single_layers": 20}}, ([], [19])),
    ],
    ids=str,
)
def test_layers(post, settings, answer):
    kinds = "double_layers", "single_layers"
    assert post(settings, path="/kleinkit/layers") == (200, dict(zip(kinds, answer)))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"single_layers": "one"}, "Expected `single_layers` to be layers such as `9` or `7-9, 12`, but got 'one'."),
        ({"single_layers": 9}, "Expected `single_layers` to be a text, but got 9."),
        (
            {"single_layers": "20", "counts": {"single_layers": 20}},
            "Expected `single_layers` to be layers of this model, 0 to 19",
        ),
        ({"counts": [5, 20]}, "Expected `counts` to be an object of double_layers and single_layers, but got [5, 20]."),
        ({"counts": {"layers": 1}}, "Expected `counts` to be an object of double_layers and single_layers, but got {"),
        ({"counts": {"single_layers": 10**9}}, "Expected `single_layers` to be a whole number between 0 and 1000, but got"),
        ({"layers": "9"}, "Expected `setting` to be one of double_layers, single_layers, counts, but got 'layers'."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_layers_that_do_not_fit(post, settings, sentence):
    status, answer = post(settings, path="/kleinkit/layers")
    assert status == 400 and list(answer) == ["error"]
    assert answer["error"].startswith(sentence) and len(answer["error"]) < 400


def test_a_sweep_is_what_the_node_gives(server, post):
    text = "1, 2.5, 4:10:2, 0:1:0.25"
    prompt = {
        "1": {"class_type": "KleinKitSweep", "inputs": {"values": text}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }
    outcome = api.queue(server, prompt)
    assert post({"values": text}, path="/kleinkit/sweep") == (200, {"labels": outcome.outputs["2"]["text"]})


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "Expected `values` to be a text, but got None."),
        ({"values": "a"}, "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got 'a'."),
        ({"values": "0:1e9:1e-9"}, "Expected `values` to be at most 256 numbers, but got '0:1e9:1e-9'."),
        ({"values": "1", "value": 1}, "Expected `setting` to be one of values, but got 'value'."),
    ],
    ids=str,
)
def test_a_sweep_that_is_none(post, settings, sentence):
    assert post(settings, path="/kleinkit/sweep") == (400, {"error": sentence})


SETTINGS_OF_REFERENCES = [
    {},
    {"size": "keep"},
    {"size.megapixels": 0.01, "latent_from": "first picture"},
    {"latent_from": "width and height", "latent_from.width": 100, "latent_from.height": 64},
]


@pytest.mark.parametrize("settings", SETTINGS_OF_REFERENCES, ids=str)
def test_references_are_those_of_the_node(server, post, settings):
    """Sizes by what ComfyUI makes of the latents; a token is a cell of a latent."""
    sizes = [[199, 120], [64, 64], [20, 33]]
    prompt = {
        "loader": {"class_type": "KleinKitLoader", "inputs": LOADER},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": ""}},
    }
    common = {"positive": ["prompt", 0], "negative": ["prompt", 0], "vae": ["loader", 2]}
    common |= {"size": "megapixels", "size.megapixels": 1.0, "latent_from": "first picture"} | settings
    for place, (width, height) in enumerate(sizes, 1):
        size = dict(width=width, height=height)
        prompt[f"image {place}"] = {"class_type": "EmptyImage", "inputs": size | {"batch_size": 1, "color": 0}}
        # A picture alone gives the latent its own size.
        alone = common | {"images.image_1": [f"image {place}", 0], "latent_from": "first picture"}
        prompt[f"alone {place}"] = {"class_type": "KleinKitReferences", "inputs": alone}
        for output in (3, 4):
            prompt[f"{place} {output}"] = {"class_type": "PreviewAny", "inputs": {"source": [f"alone {place}", output]}}
    every = {f"images.image_{place}": [f"image {place}", 0] for place in range(1, 4)}
    prompt["all"] = {"class_type": "KleinKitReferences", "inputs": common | every}
    for output in (3, 4):
        prompt[f"made {output}"] = {"class_type": "PreviewAny", "inputs": {"source": ["all", output]}}
    outcome = api.queue(server, prompt)
    assert outcome.error is None, api.sentences(outcome.error)

    def sized(name):
        width, height = (int(outcome.outputs[f"{name} {output}"]["text"][0]) for output in (3, 4))
        return {"width": width, "height": height, "tokens": width * height // 256}

    status, answer = post({"pictures": sizes, **settings}, path="/kleinkit/references")
    pictures = [sized(place) for place in range(1, 4)]
    references = sum(picture["tokens"] for picture in pictures)
    total = references + sized("made")["tokens"]
    wanted = {"pictures": pictures, "made": sized("made"), "references": references, "total": total}
    assert (status, answer) == (200, wanted)


def test_references_of_unknown_size(post):
    answer = post({"pictures": [None, [1024, 1024]]}, path="/kleinkit/references")[1]
    known = {"width": 1024, "height": 1024, "tokens": 4096}
    assert answer == {"pictures": [None, known], "made": None, "references": None, "total": None}


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "Expected `pictures` to be a list, but got None."),
        ({"pictures": []}, "Expected `images` to be 1 to 10 pictures, of which each of a batch is one, but got 0."),
        ({"pictures": [None] * 11}, "Expected `images` to be 1 to 10 pictures, of which each of a batch is one, but got 11."),
        ({"pictures": [[]]}, "Picture 1: Expected `pictures` to be a list of [width, height], null where that is not known"),
        ({"pictures": [None, 0]}, "Picture 2: Expected `pictures` to be a list of [width, height], null where that is not"),
        ({"pictures": [[64, 10**9]]}, "Picture 1: Expected `height` to be a whole number between 1 and 1000000, but got"),
        ({"pictures": [[64, 64.5]]}, "Picture 1: Expected `height` to be a whole number between 1 and 1000000, but got 64.5"),
        ({"pictures": [[64, 1]]}, "Picture 1: Expected a picture of at least 16 × 16 pixels, but got 64 × 1: scale it up"),
        ({"pictures": [None], "size": "large"}, "Expected `size` to be one of megapixels, keep, but got 'large'."),
        ({"pictures": [None], "size.megapixels": 0}, "Expected `size.megapixels` to be a number between 0.01 and 16.0, but"),
        (
            {"pictures": [None], "size": "keep", "size.megapixels": 1},
            "Expected `input of size` to be absent, but got 'megapixels'.",
        ),
        ({"pictures": [None], "latent_from": ["x"]}, "Expected `latent_from` to be one of first picture, width and height"),
        ({"pictures": [None], "mask": True}, "Expected `setting` to be one of pictures, size, latent_from, but got 'mask'."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_references_that_do_not_fit(post, settings, sentence):
    status, answer = post(settings, path="/kleinkit/references")
    assert status == 400 and list(answer) == ["error"]
    assert answer["error"].startswith(sentence) and len(answer["error"]) < 400


@pytest.fixture
def no_klein(server):
    """Another model among the diffusion models."""
    models = server.base / "models"
    file = models / "diffusion_models" / "no-klein.safetensors"
    file.hardlink_to(next((models / "text_encoders").glob("*.safetensors")))
    yield
    file.unlink()


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "None is not a safetensors file in models/diffusion_models, nor a folder in models/diffusers."),
        ({"diffusion_model": "../text_encoders/qwen-nano.safetensors"}, "'../text_encoders/qwen-nano.safetensors' is not a"),
        ({"diffusion_model": "/etc/passwd"}, "'/etc/passwd' is not a safetensors file in models/diffusion_models"),
        ({"diffusion_model": {"a": "x" * 10000}}, "{'a': 'xxx"),
        ({"diffusion_model": "x" * 10000 + ".gguf"}, "'xxx"),
        ({"variant": "turbo"}, "Expected `variant` to be one of auto, distilled, base, but got 'turbo'."),
        ({"text_encoder": "auto"}, "Expected `setting` to be one of diffusion_model, variant, but got 'text_encoder'."),
        (
            {"diffusion_model": "no-klein.safetensors"},
            "Expected `diffusion_model` to be a FLUX.2 [klein], but no-klein.safetensors is Qwen3",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_that_have_no_settings(no_klein, post, settings, sentence):
    status, answer = post(settings, path="/kleinkit/loader")
    assert status == 400 and list(answer) == ["error"]
    assert answer["error"].startswith(sentence) and len(answer["error"]) < 500


@pytest.mark.parametrize(
    "body, headers, sentence",
    [
        (b"{}", {"Content-Type": "text/plain"}, "Expected `body` to be of type application/json, but got text/plain."),
        (b"{}", {}, "Expected `body` to be of type application/json, but got application/octet-stream."),
        (b"", JSON, "Expected `body` to be JSON, but got something else."),
        (b"{'steps': 4}", JSON, "Expected `body` to be JSON, but got something else."),
        (b"\xff\xfe\xfd", JSON, "Expected `body` to be JSON, but got something else."),
        (b"[" * 16000, JSON, "Expected `body` to be JSON, but got something else."),
        (b'{"steps": ' + b"9" * 8000 + b"}", JSON, "Expected `body` to be JSON, but got something else."),
        (b"[]", JSON, "Expected `body` to be a JSON object of settings, but got list."),
        (b"4", JSON, "Expected `body` to be a JSON object of settings, but got int."),
        (b" " * 16 * 1024 + b"{}", JSON, "Expected `body` to be at most 16384 bytes long, but got more."),
        (b"{}", JSON | {"Content-Encoding": "gzip"}, "Expected `body` to be what its headers say, but it cannot be decoded."),
        (b" " * 1_000_000, JSON, "Expected `body` to be at most 16384 bytes long, but got more."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_do_not_fit(post, body, headers, sentence):
    assert post(body, headers) == (400, {"error": sentence})


def test_a_body_of_just_16_kilobytes(post):
    assert post(b'{"steps": 4}'.ljust(16 * 1024))[0] == 200


def test_a_long_value_is_cut_in_the_sentence(post):
    status, answer = post({"spacing": "x" * 10000})
    assert status == 400 and len(answer["error"]) < 400
