"""A custom node pack for tests: nodes that break a model, that keep the server busy, and that say what it holds and did."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import comfy.model_management
import psutil
import torch
from comfy.patcher_extension import WrappersMP
from server import PromptServer

KEY = "kleinkit_test_fault"
# Audit events of talking to others, of starting programs, of making objects from bytes, and of writing.
TALKS = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"}
CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
    "shutil.move",
}
events = []


def listen(event, args):
    """Audit hook: keep what the thread that runs the nodes does."""
    if threading.current_thread() is threading.main_thread():
        return
    if event in TALKS | STARTS | CHANGES | {"pickle.find_class"}:
        events.append([event, str(args[:1])])
    elif event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR):
        events.append([event, os.path.realpath(os.fsdecode(args[0]))])


def fail(*_):
    raise RuntimeError("broken on purpose")


def run_out_of_memory(*_):
    raise comfy.model_management.OOM_EXCEPTION("out of memory on purpose")


def interrupt(*_):
    # As POST /interrupt: ComfyUI raises at the next operation of the model.
    comfy.model_management.interrupt_current_processing()


def misbehave(*_):
    with socket.socket() as connection:
        connection.connect_ex(("127.0.0.1", 9))
    subprocess.run([sys.executable, "--version"], check=True)
    with open(os.devnull, "w"):
        pass


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def not_a_number(module, args):
    return (args[0] * float("nan"), *args[1:])


FAULTS = {
    "error": fail,
    "out of memory": run_out_of_memory,
    "interrupt": interrupt,
    "nan": not_a_number,
    "kill": kill,
    "misbehave": misbehave,
}


def break_pass(model, fault, call, calls=None):
    """A clone of a Klein in whose `call`-th pass, counted from 1, something happens near the end.

    Args:
        model: `ModelPatcher`.
        fault: a key of `FAULTS`, or none.
        call: which pass; 0 is none.
        calls: a list to append to, at each pass.
    """
    model, calls = model.clone(), [] if calls is None else calls

    def count(executor, *args, **kwargs):
        calls.append(None)
        if len(calls) != call:
            return executor(*args, **kwargs)
        hook = executor.class_obj.final_layer.register_forward_pre_hook(FAULTS[fault])
        try:
            return executor(*args, **kwargs)
        finally:
            hook.remove()

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, count)
    return model


class KleinKitTestFault:
    """Outputs the model with a fault. It is new to every prompt, so that nothing behind it is taken from the cache."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "fault": (["none", *FAULTS],), "call": ("INT", {"default": 0})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, model, fault, call):
        return (break_pass(model, fault, call),)


class KleinKitTestWait:
    """Is at work, without any, until it is interrupted."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        while True:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.05)


class KleinKitTestBusy:
    """Right after this prompt, once ComfyUI has looked at what `/free` asked for, its machine is busy for a while."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 2.0})}}

    def run(self, seconds):
        queue = PromptServer.instance.prompt_queue

        def slowly(*args, **kwargs):
            del queue.get_flags
            flags = queue.get_flags(*args, **kwargs)
            time.sleep(seconds)
            return flags

        queue.get_flags = slowly
        return {"ui": {}}


class KleinKitTestState:
    """Says what the process holds once the image is there, and what it did since it last said so."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image):
        gc.collect()
        process = psutil.Process()
        models = [loaded.model.model for loaded in comfy.model_management.current_loaded_models]
        modules = [module for model in models for module in model.modules()]
        state = {
            "tensors": sum(type(thing) is torch.Tensor for thing in gc.get_objects()),
            "models": len(models),
            "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
            "threads": threading.active_count(),
            "files": len(process.open_files()),
            "memory": process.memory_info().rss,
            "events": events[:],
        }
        events.clear()
        return {"ui": {"text": [json.dumps(state)]}}


sys.addaudithook(listen)
NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (KleinKitTestFault, KleinKitTestWait, KleinKitTestBusy, KleinKitTestState)}
