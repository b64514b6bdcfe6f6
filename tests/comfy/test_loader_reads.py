"""How often a header is read: once for each state of a file, from the list to the weights."""

import errno
import os

import pytest
from files import flux2_vae, klein, qwen3, write
from loader import link_models, load, use_models
from reads import opened

MODEL = "flux-2-klein-nano-base.safetensors"
ENCODERS = 60


@pytest.fixture
def installed(comfy, models, monkeypatch, tmp_path, pack):
    """The nano family among 60 encoders of real size, all of them holes, a damaged file and a diffusers folder."""
    base = tmp_path / "models"
    use_models(monkeypatch, base)
    link_models(models, base)
    first = write(base / "text_encoders/other-00.safetensors", qwen3())
    for number in range(1, ENCODERS):
        os.link(first, base / f"text_encoders/other-{number:02}.safetensors")
    (base / "text_encoders/damaged.safetensors").write_bytes(b"1234567")
    folder = base / "diffusers/klein"
    write(folder / "transformer/diffusion_pytorch_model.safetensors", klein())
    write(folder / "text_encoder/model.safetensors", qwen3())
    write(folder / "vae/diffusion_pytorch_model.safetensors", flux2_vae())
    (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": true}')
    pack("checkpoint.kept").outcome.cache_clear()
    return base


@pytest.fixture
def prompt(comfy, run_node, installed):
    """`prompt()`: how often each file is opened while a prompt is fingerprinted and executed."""

    def prompt(**inputs):
        with opened(installed) as count:
            comfy.NODE_CLASS_MAPPINGS["KleinKitLoader"].fingerprint_inputs(
                **dict(diffusion_model=MODEL, text_encoder="auto", vae="auto", trim_text_encoder=True) | inputs
            )
            load(run_node, MODEL, **inputs)
        return count

    return prompt


def test_a_first_prompt_reads_each_header_once_and_a_second_none(prompt):
    first = prompt()
    assert len([name for name in first if name.startswith("text_encoders")]) >= ENCODERS + 2
    assert set(first.values()) == {1}
    assert not prompt()


def test_a_changed_file_is_read_once_more(prompt, installed):
    prompt()
    changed = installed / "text_encoders/damaged.safetensors"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert prompt() == {"text_encoders/damaged.safetensors": 1}
    changed.write_bytes(b"123456789")
    assert prompt() == {"text_encoders/damaged.safetensors": 1}
    assert not prompt()


def test_diffusers_folder(pack, installed):
    engine, name = pack("engine.installed"), "klein/model_index.json"
    with opened(installed) as count:
        found = engine.inspect_listed("diffusion model", name)
    assert len(count) == 4 and set(count.values()) == {1}
    with opened(installed) as count:
        assert engine.inspect_listed("diffusion model", name)[0] is found[0]
        assert engine.fingerprint(name, "auto", "auto", True)
    assert not any(file.startswith("diffusers") for file in count)
    (installed / "diffusers/klein/model_index.json").write_text('{"_class_name": "Flux2KleinPipeline", "is_distilled": false}')
    assert engine.inspect_listed("diffusion model", name)[1] is False


def test_weights_are_loaded_from_the_checkpoint(pack, installed):
    engine, loading = pack("engine.installed"), pack("engine.loading")
    klein, encoder, vae, _ = engine.resolve(MODEL, "auto", "auto", True)
    with opened(installed) as count:
        parts = loading.load_text_encoder(encoder, True).patcher, loading.load_vae(vae).patcher
        for patcher in parts:
            make, arguments = patcher.cached_patcher_init
            make(*arguments, disable_dynamic=True)
    assert not count


@pytest.mark.parametrize(
    "module, role, name",
    [
        ("checkpoint.header", "text encoder", "other-00.safetensors"),
        ("checkpoint.diffusers_folder", "diffusion model", "klein/model_index.json"),
    ],
)
def test_a_file_that_becomes_readable_is_tried_anew(pack, installed, monkeypatch, module, role, name):
    engine = pack("engine.installed")

    def deny(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(pack(module), "open", deny, raising=False)
        with pytest.raises(ValueError, match="[Pp]ermission denied"):
            engine.inspect_listed(role, name)
    assert engine.inspect_listed(role, name)
