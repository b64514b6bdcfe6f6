"""A server keeps the outputs of nodes whose inputs and files have not changed: KleinKitLoader over its queue."""

from files import write
from kleinkit.harness import server as api
from kleinkit.nano.build import SHIPPED
from safetensors.torch import load_file


def test_changed_file_is_loaded_anew_and_no_other(server):
    file = server.base / "models/diffusion_models/changing-klein.safetensors"
    weights = load_file(SHIPPED["base"])
    prompt = {
        "1": {
            "class_type": "KleinKitLoader",
            "inputs": {
                "diffusion_model": file.name,
                "text_encoder": "auto",
                "vae": "auto",
                "variant": "auto",
                "weight_dtype": "default",
                "distilled_cfg": "ignore",
                "trim_text_encoder": True,
            },
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
    }

    def ran():
        nodes = []
        outcome = api.queue(server, prompt, lambda kind, data: nodes.append(data["node"]) if kind == "executing" else 0)
        assert outcome.error is None
        return "1" in nodes

    write(file, weights, metadata={"is_distilled": "true"})
    assert ran()
    assert not ran()
    write(file, weights, metadata={"is_distilled": "false"})
    assert ran()
    assert not ran()
    file.unlink()
