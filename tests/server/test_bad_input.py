"""Bad input over the API: one sentence that names the node, the input, what was given and what fits."""

import pytest
from files import write
from kleinkit.harness import server as api
from prompts import guided


def said(server, prompt):
    """The one sentence that a user reads of a prompt that must not run."""
    outcome = api.queue(server, prompt)
    assert outcome.outputs == {}
    # ComfyUI repeats what `validate_inputs` says at every input that it looks at.
    sentences = {text.split(" - ")[-1]: text for text in reversed(api.sentences(outcome.error))}
    [sentence] = sentences.values()
    assert len(sentence) < 300 and "\n" not in sentence
    return sentence


def inputs_of(prompt, node):
    [inputs] = [entry["inputs"] for entry in prompt.values() if entry["class_type"] == node]
    return inputs


@pytest.mark.parametrize(
    "node, name, given, fits",
    [
        ("KleinKitScheduler", "steps", 0, "min of 1"),
        ("KleinKitScheduler", "width", 8, "min of 16"),
        ("KleinKitScheduler", "height", 20000, "max of 16384"),
        ("KleinKitScheduler", "denoise", 1.5, "max of 1.0"),
        ("KleinKitSkipLayerGuidance", "single_layers", "4", "0 to 3"),
        ("KleinKitSkipLayerGuidance", "double_layers", "0-2", "0 to 1"),
        ("KleinKitSkipLayerGuidance", "single_layers", "9; 10", "0 to 3"),
        ("KleinKitSkipLayerGuidance", "end", 0.0, "above `start`"),
        ("KleinKitLoader", "diffusion_model", "absent.safetensors", "models/diffusion_models"),
        ("KleinKitLoader", "diffusion_model", "../absent.safetensors", "models/diffusion_models"),
        ("KleinKitLoader", "text_encoder", "absent.safetensors", "qwen_3_nano.safetensors"),
        ("KleinKitLoader", "vae", "absent.safetensors", "auto"),
    ],
)
def test_value_that_does_not_fit(server, node, name, given, fits):
    prompt = guided()
    inputs_of(prompt, node)[name] = given
    sentence = said(server, prompt)
    assert sentence.startswith(f"{node}: ")
    assert name in sentence and str(given) in sentence and fits in sentence


@pytest.mark.parametrize("given", ["absent", 3, None, ["absent"]])
@pytest.mark.parametrize(
    "node, name, fits",
    [
        ("KleinKitCFG", "schedule", "constant, interval, skip, diminishing, curve"),
    ],
)
def test_choice_that_is_not_in_the_list(server, node, name, fits, given):
    prompt = guided()
    inputs_of(prompt, node)[name] = given
    sentence = said(server, prompt)
    assert sentence.startswith(f"{node}: ")
    assert f"Expected `{name}` to be one of {fits}, but got none of them." in sentence


@pytest.fixture(scope="module")
def pixart(server):
    """A node that loads a model that is no FLUX.2: what ComfyUI needs to take a file for PixArt."""
    file = server.base / "models" / "diffusion_models" / "pixart.safetensors"
    write(file, {"t_block.1.weight": ("F16", (6 * 1152, 1152))})
    return {"class_type": "UNETLoader", "inputs": {"unet_name": file.name, "weight_dtype": "default"}}


@pytest.mark.parametrize(
    "node, fits",
    [
        ("KleinKitSkipLayerGuidance", "double and single blocks, as FLUX.2 [klein] is"),
        ("KleinKitCFG", "a flow matching model such as FLUX.2 [klein]"),
    ],
)
def test_model_that_does_not_fit(server, pixart, node, fits):
    prompt = guided() | {"pixart": pixart}
    inputs_of(prompt, node)["model"] = ["pixart", 0]
    sentence = said(server, prompt)
    assert sentence.startswith(f"{node}: Expected `model` to be ")
    assert "PixArt" in sentence and fits in sentence


def test_log_holds_one_traceback_and_it_leads_to_the_check(server):
    prompt = guided()
    inputs_of(prompt, "KleinKitSkipLayerGuidance")["single_layers"] = "4"
    log = api.queue(server, prompt).log
    assert log.count("Traceback (most recent call last)") == 1
    assert "in parse_layers" in log
