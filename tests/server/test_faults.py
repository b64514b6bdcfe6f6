"""Whatever breaks on a server: the next prompt gives the pixels of a fresh one, and the server holds no more than before."""

import asyncio

import aiohttp
import numpy as np
import prompts
import pytest
from kleinkit.harness import server as api

LONG = 1000


@pytest.fixture(scope="module")
def before(lab):
    """What the server holds when nothing is broken yet."""
    api.forget(lab)
    return prompts.state(lab)[1]


@pytest.fixture
def as_fresh(lab, killed, before, record_property):
    """Call it after a fault: the server is as before, and its picture that of a fresh one."""

    def check():
        pixels, state = prompts.state(lab)
        assert np.array_equal(pixels, killed.fresh)
        for name in ("hooks", "threads", "files"):
            assert state[name] == before[name]
        assert state["memory"] < 1.05 * before["memory"]
        record_property("count_faults", 1)
        # With what the prompt itself came to.
        record_property("count_outcomes", 6)

    return check


# A model's passes in a run of two steps: positive and negative together, then the skip pass.
@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("fault, kind", [("error", "RuntimeError"), ("out of memory", "torch.OutOfMemoryError")])
def test_an_exception_in_a_pass(lab, as_fresh, fault, kind, call):
    outcome = api.queue(lab, prompts.prompt(prompts.SKIP, fault=(fault, call)))
    assert outcome.outputs == {}
    assert outcome.error["exception_type"] == kind
    [sentence] = api.sentences(outcome.error)
    assert sentence.startswith("KSampler: ") and "on purpose" in sentence
    as_fresh()


@pytest.mark.parametrize("call", [1, 4])
def test_an_interrupt_in_a_pass(lab, as_fresh, call):
    outcome = api.queue(lab, prompts.prompt(prompts.SKIP, fault=("interrupt", call)))
    assert outcome.outputs == {} and api.sentences(outcome.error) == ["KSampler: interrupted"]
    as_fresh()


def test_the_user_interrupts(lab, as_fresh):
    steps = []

    def listen(kind, data):
        # ComfyUI leaves some steps out of its progress.
        if kind == "progress" and data["node"] == "sampler":
            steps.append(data["value"])
            prompts.interrupt(lab)

    outcome = api.queue(lab, prompts.prompt(prompts.SKIP, steps=LONG), listen)
    assert outcome.outputs == {} and api.sentences(outcome.error) == ["KSampler: interrupted"]
    assert max(steps) < LONG
    as_fresh()


def test_the_client_goes_away(lab, as_fresh, killed):
    async def leave_at_first_step():
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{lab.url}/ws?clientId=gone") as events:
            body = {"prompt": prompts.prompt(prompts.SKIP), "client_id": "gone"}
            async with session.post(f"{lab.url}/prompt", json=body) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            async for message in events:
                if message.type is aiohttp.WSMsgType.TEXT and message.json()["type"] == "progress":
                    return prompt_id

    prompt_id = asyncio.run(leave_at_first_step())
    # A prompt that is queued behind it ends after it.
    prompts.run(lab, prompts.prompt())
    entry = api.get(lab, f"/history/{prompt_id}")[prompt_id]
    assert np.array_equal(prompts.picture(lab, api.Outcome(entry["outputs"], None, "")), killed.fresh)
    as_fresh()


def test_nan_is_reported(lab, as_fresh):
    outcome = api.queue(lab, prompts.prompt(prompts.SKIP, fault=("nan", 2)))
    assert outcome.error is None
    assert "KleinKit: NaN or infinity from the model (skip) in step 1 of 2, at sigma 1." in outcome.log
    as_fresh()


def test_a_rule_that_cannot_go_on(lab, as_fresh):
    outcome = api.queue(lab, prompts.prompt(prompts.SKIP, ("KleinKitImageCFG", dict(image_scale=2.0))))
    [sentence] = api.sentences(outcome.error)
    assert "Klein Image CFG: The negative prompt has no reference latent" in sentence
    as_fresh()


def test_the_server_was_killed_in_the_middle_of_a_sweep(lab, killed, as_fresh):
    assert "ComfyUI stopped answering" in str(killed.error)
    whole = {steps: prompts.run(lab, prompts.prompt(steps=steps)) for steps in prompts.SWEEP}
    assert list(killed.sweep) == [steps for steps in prompts.SWEEP if steps < prompts.KILLED_AT]
    assert all(np.array_equal(whole[steps], pixels) for steps, pixels in killed.sweep.items())
    as_fresh()


def test_after_all_that_no_tensor_and_no_model_is_kept(lab, before):
    api.forget(lab)
    state = prompts.state(lab)[1]
    assert (state["tensors"], state["models"]) == (before["tensors"], before["models"])
