"""The routes under many requests at once, good, bad and oversized, against their description in docs/openapi.json."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import prompts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from kleinkit.harness import server as api
from kleinkit.harness.workflow import NANO, WORKFLOWS
from kleinkit.pictures.reference import LATENTS, MOST, SIZES
from kleinkit.scheduler.schedule import DENOISE_MODES, LIMITS, SHIFT_CHOICES
from kleinkit.scheduler.spacing import SPACINGS

SPEC = json.loads(Path(WORKFLOWS.parent, "docs", "openapi.json").read_text("utf-8"))
SCHEMAS = SPEC["components"]["schemas"]
AT_ONCE = 16
# What fits a text or an object that the description does not tell.
RULES = {
    "KleinKitCFG": {"schedule": "interval", "schedule.start": 0.2, "schedule.end": 0.8, "unguided": "unconditional"},
    "KleinKitSkipLayerGuidance": {"scale": 2.5, "double_layers": "1", "single_layers": "7-9, 12", "mode": "attention"},
    "KleinKitSEG": {"scale": 2.5, "double_layers": "0", "single_layers": "2, 4-5", "blur_sigma": 3.0},
    "KleinKitCFGZeroStar": {"optimized_scale": True, "zero_init_steps": 2},
    "KleinKitRenorm": {"mode": "token", "strength": 0.5, "shrink_only": False},
    "KleinKitSlerpCFG": {"cap": 60.0},
    "KleinKitImageCFG": {"image_scale": 1.5},
    "KleinKitBaseUncond": {},
    "KleinKitAutoGuidance": {"scale": 1.5, "double_layers": "1", "single_layers": "", "prompt": "both", "weak_model": True},
    "KleinKitMomentum": {"alpha": 0.5, "beta": 0.6, "start": 0.0, "end": 0.5},
    "KleinKitAdaptiveGuidance": {"threshold": 0.9},
    "KleinKitGuidance": {"preset": "sharper"},
    "KleinKitNAG": {"scale": 4.0, "tau": 2.0, "alpha": 0.5, "start": 0.0, "end": 0.5},
    "KleinKitAPG": {"eta": 0.5, "norm_threshold": 10.0, "momentum": -0.25, "space": "velocity", "start": 0.5, "scale": 8.0},
    "KleinKitMAMBOG": {"alpha": 6.0},
    "KleinKitFDG": {"shares": "1, 0.5"},
    "KleinKitTCFG": {},
}
TEXTS = {"double_layers": ("", "1-3"), "single_layers": ("9", "7-9, 12"), "values": ("1, 2, 4:10:2", "0.5")}
LOADER = {"diffusion_model": NANO["flux-2-klein-4b.safetensors"]}


def validator(reference):
    return Draft202012Validator(SPEC | {"$ref": reference})


def of_operation(path, status):
    """The reference to the schema of what a path takes (`status` None) or answers."""
    operation = SPEC["paths"][path]["post"]
    content = operation["requestBody"] if status is None else operation["responses"][str(status)]
    if "$ref" in content:
        content = SPEC["components"]["responses"][content["$ref"].rpartition("/")[2]]
    return content["content"]["application/json"]["schema"]["$ref"]


def values(schema, name=None):
    """A strategy for what fits a schema of the description; a text is told by its name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == "Rule":
            return st.sampled_from([{"node": node, "inputs": inputs} for node, inputs in RULES.items()])
        return values(SCHEMAS[name])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "null" in schema["type"]:
        return st.none() | values(schema | {"type": schema["type"][0]})
    if schema["type"] == "object":
        properties, required = schema["properties"], schema.get("required", ())
        return st.fixed_dictionaries(
            {name: values(properties[name], name) for name in required},
            optional={name: values(of, name) for name, of in properties.items() if name not in required},
        )
    if schema.get("description", "").startswith("a name of the node's list"):
        return st.sampled_from(sorted(NANO.values()))
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "array":
        return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=schema["maxItems"])
    if schema["type"] == "integer":
        factor = schema.get("multipleOf", 1)
        return st.integers(schema["minimum"] // factor, schema["maximum"] // factor).map(lambda number: number * factor)
    if schema["type"] == "number":
        return st.floats(schema["minimum"], schema["maximum"])
    if name in TEXTS:
        return st.sampled_from(TEXTS[name])
    return st.lists(st.floats(0, 100), max_size=1000).map(lambda scales: ", ".join(map(str, scales)))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.just("../../etc/passwd"),
    st.just("<img src=x onerror=alert(1)>"),
    st.just("9" * 5000),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(), st.integers(), max_size=3),
)


@st.composite
def requests(draw):
    """`(path, body)`: settings that fit, settings some of which do not, and bodies that are no settings or too large."""
    path = draw(st.sampled_from(sorted(SPEC["paths"])))
    schema = SCHEMAS[of_operation(path, None).rpartition("/")[2]]
    body = draw(values(schema))
    kind = draw(st.sampled_from(("good", "good", "bad", "bad", "none", "large")))
    if kind == "bad":
        body[draw(st.one_of(st.sampled_from(sorted(schema["properties"])), st.text()))] = draw(JUNK)
    if kind == "none":
        body = draw(st.one_of(st.binary(max_size=300), JUNK.filter(lambda junk: not isinstance(junk, dict))))
    if kind == "large":
        body = json.dumps(body).encode().ljust(draw(st.integers(16 * 1024 + 1, 2_000_000)))
    return path, body


def test_description_names_the_limits_and_choices_of_the_code():
    properties = SCHEMAS["SigmaSettings"]["properties"]
    found = {
        name.removeprefix("shift."): (schema["minimum"], schema["maximum"])
        for name, schema in properties.items()
        if "minimum" in schema
    }
    assert found == LIMITS
    for name, choices in (("shift", SHIFT_CHOICES), ("spacing", SPACINGS), ("denoise_mode", DENOISE_MODES)):
        assert properties[name]["enum"] == list(choices)
    properties = SCHEMAS["ReferencesSettings"]["properties"]
    assert (properties["pictures"]["maxItems"], SCHEMAS["References"]["properties"]["pictures"]["maxItems"]) == (MOST, MOST)
    for name, choices in (("size", SIZES), ("latent_from", LATENTS)):
        assert properties[name]["enum"] == list(choices)
        for key, (_, low, high) in [one for inputs in choices.values() for one in inputs.items()]:
            schema = properties[f"{name}.{key}"]
            assert (schema["minimum"], schema["maximum"]) == (low, high)


def test_many_at_once_are_answered_as_described(post, record_property):
    counts, slowest = Counter(), 0.0

    def send(request):
        path, body = request
        start = time.perf_counter()
        status, answer = post(body, path=path)
        return path, body, status, answer, time.perf_counter() - start

    with ThreadPoolExecutor(AT_ONCE) as pool:

        @settings(max_examples=12)
        @given(st.lists(requests(), min_size=AT_ONCE, max_size=AT_ONCE))
        def load(batch):
            nonlocal slowest
            for path, body, status, answer, seconds in pool.map(send, batch):
                counts[status] += 1
                slowest = max(slowest, seconds)
                assert status in (200, 400), (path, body, status, answer)
                validator(of_operation(path, status)).validate(answer)
                if isinstance(body, bytes) or not validator(of_operation(path, None)).is_valid(body):
                    assert status == 400, (path, body)

        load()
    assert min(counts[200], counts[400]) >= AT_ONCE
    record_property("count_requests", sum(counts.values()))
    record_property("count_requests_refused", counts[400])
    record_property("slowest_of_16_at_once_ms", round(slowest * 1000))


@pytest.mark.parametrize(
    "path, settings",
    [
        ("/kleinkit/sigmas", {"steps": 10000, "width": 16384, "height": 16384, "spacing": "beta"}),
        ("/kleinkit/loader", LOADER),
        ("/kleinkit/guidance", {"schedule": "curve", "schedule.scales": "5," * 7000 + "5", "sigmas": {"steps": 1000}}),
        (
            "/kleinkit/guidance",
            {
                "rules": [
                    {"node": "KleinKitSkipLayerGuidance", "inputs": {"single_layers": "0-999," * 120, "end": 1.0}},
                    {"node": "KleinKitAdaptiveGuidance"},
                ]
                * 8,
                "distilled": True,
                "sigmas": {"steps": 1000},
            },
        ),
        ("/kleinkit/layers", {"double_layers": "0-999," * 1200, "single_layers": "0-999," * 1200}),
        ("/kleinkit/sweep", {"values": "0:255," + " , " * 5000}),
        ("/kleinkit/references", {"pictures": [[10**6, 10**6]] * 10, "size": "keep"}),
    ],
)
def test_the_most_work_that_one_request_can_ask_for(post, path, settings, record_property):
    start = time.perf_counter()
    assert post(settings, path=path)[0] == 200
    record_property("milliseconds", round((time.perf_counter() - start) * 1000))


def test_more_rules_than_a_preview_of_guidance_has(post):
    status, answer = post({"rules": [{"node": "KleinKitSlerpCFG"}] * 17}, path="/kleinkit/guidance")
    assert status == 400 and answer["error"].startswith("Expected `rules` to be a list of at most 16 nodes, but got [{'node'")


def test_more_steps_than_a_preview_of_guidance_has(post):
    assert post({"sigmas": {"steps": 1001}}, path="/kleinkit/guidance") == (
        400,
        {"error": "Expected `steps` to be at most 1000 in a preview of guidance, but got 1001."},
    )


def test_the_routes_answer_while_a_prompt_is_sampled(server, post):
    answers = []

    def listen(kind, data):
        if kind == "progress" and not answers:
            bodies = dict.fromkeys(SPEC["paths"], {}) | {"/kleinkit/loader": LOADER, "/kleinkit/sweep": {"values": "1"}}
            bodies["/kleinkit/references"] = {"pictures": [[1024, 1024], None]}
            answers.extend(post(body, path=path)[0] for path, body in [*bodies.items()] * 10)
            prompts.interrupt(server)

    # That it could still be interrupted shows that the answers came while it ran.
    outcome = api.queue(server, prompts.prompt(steps=1000, fault=None), listen)
    assert api.sentences(outcome.error) == ["KSampler: interrupted"] and answers == [200] * 10 * len(SPEC["paths"])
