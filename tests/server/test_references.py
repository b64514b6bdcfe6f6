"""Klein References over HTTP: inputs that grow, choices with inputs of their own, and what of them does not fit."""

import prompts
import pytest
from kleinkit.harness import server as api

IMAGES = {"images.image_1": ["photo", 0], "images.image_2": ["other", 0]}
# No side is a multiple of 16.
SIZES = {"photo": (70, 49), "other": (40, 41)}


def edit(images=IMAGES, batch=1, **inputs):
    """A prompt of an edit; `inputs` are further ones of Klein References."""
    wanted = prompts.prompt(fault=None)
    choices = {"size": "megapixels", "size.megapixels": 1.0, "latent_from": "first picture"}
    links = dict(positive=["positive", 0], negative=["negative", 0], vae=["loader", 2])
    more = {
        name: ("EmptyImage", dict(width=width, height=height, batch_size=batch, color=200))
        for name, (width, height) in SIZES.items()
    } | {
        "references": ("KleinKitReferences", links | images | choices | inputs),
        "width": ("PreviewAny", dict(source=["references", 3])),
        "height": ("PreviewAny", dict(source=["references", 4])),
    }
    wanted |= {key: {"class_type": node, "inputs": inputs} for key, (node, inputs) in more.items()}
    wanted["sampler"]["inputs"] |= dict(positive=["references", 0], negative=["references", 1], latent_image=["references", 2])
    return wanted


@pytest.mark.parametrize(
    "inputs, size",
    [
        ({}, (64, 48)),
        ({"size": "keep", "latent_from": "width and height", "latent_from.width": 80, "latent_from.height": 32}, (80, 32)),
        ({"mask": ["mask", 0]}, (64, 48)),
    ],
    ids=str,
)
def test_an_edit_has_the_size(server, inputs, size):
    wanted = edit(**inputs)
    if "mask" in inputs:
        wanted["mask"] = {"class_type": "SolidMask", "inputs": dict(value=1.0, width=20, height=20)}
    outcome = api.queue(server, wanted)
    assert outcome.error is None, api.sentences(outcome.error)
    assert [int(outcome.outputs[name]["text"][0]) for name in ("width", "height")] == list(size)
    assert prompts.picture(server, outcome).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"images": {}}, "Required input is missing: image"),
        ({"images": {"images.image_2": ["photo", 0]}}, "Required input is missing: image_1"),
        ({"images.image_11": ["photo", 0]}, "Expected `images` to be image_1 to image_10, but got images.image_11."),
        (
            {"images": {"images.image_1": 4}},
            "Expected `images.image_1` to be an IMAGE [batch, height, width, channels], but got 4.",
        ),
        ({"batch": 6}, "Expected `images` to be 1 to 10 pictures, of which each of a batch is one, but got 12."),
        ({"size": "large"}, "Expected `size` to be one of megapixels, keep, but got none of them."),
        ({"latent_from": "x"}, "Expected `latent_from` to be one of first picture, width and height, but got none of them."),
        ({"size.megapixels": 100}, "Value 100.0 bigger than max of 16.0: size.megapixels"),
    ],
    ids=str,
)
def test_one_sentence_says_what_does_not_fit(server, changes, says):
    outcome = api.queue(server, edit(**changes))
    # ComfyUI repeats an answer at every input that it belongs to.
    [sentence] = {text.split(" - ")[-1] for text in api.sentences(outcome.error)}
    assert says in sentence and "\n" not in sentence
