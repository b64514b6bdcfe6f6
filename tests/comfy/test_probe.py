"""KleinKitProbe in real sampling runs: it changes nothing, and what it records is what happened."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sampling import comfy_run, conditioning, embeddings, latent_noise, small_klein, with_nodes

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0])
LATE = ("KleinKitCFG", dict(schedule={"schedule": "skip", "mode": "late", "guided_ratio": 0.5}, unguided="conditional"))
NEGATIVE = ("KleinKitCFG", dict(schedule={"schedule": "skip", "mode": "late", "guided_ratio": 0.0}, unguided="unconditional"))
ZERO_STAR = ("KleinKitCFGZeroStar", dict(optimized_scale=True, zero_init_steps=1))
SKIP = (
    "KleinKitSkipLayerGuidance",
    dict(scale=2.0, double_layers="", single_layers="0", start=0.0, end=0.5, mode="block", rescale=0.0),
)
RENORM = ("KleinKitRenorm", dict(mode="global", strength=1.0, shrink_only=False))
SLERP = ("KleinKitSlerpCFG", {})
BLOCKS = 1 + 2


@pytest.fixture(scope="module")
def klein(comfy):
    return small_klein(double_blocks=1, single_blocks=2)


@pytest.fixture
def probed(run_node, klein):
    """A model with a probe between guidance nodes, and the probe."""

    def probed(before=(), after=(), model=klein):
        model, probe = run_node("KleinKitProbe", model=with_nodes(run_node, model, *before))
        return with_nodes(run_node, model, *after), probe

    return probed


def text(seed, scale=1.0, **values):
    return conditioning(embeddings(192, seed)[:, :32] * scale, **values)


def run(model, cfg=4.0, sampler="euler", batch=1, sigmas=SIGMAS, **conds):
    prompts = dict(positive=text(1), negative=text(2))
    return comfy_run(model, sigmas, latent_noise(32, 48, batch), cfg=cfg, sampler=sampler, **prompts | conds)


def column(probe, name, number=-1):
    return [call[name] for call in probe.runs[number].calls]


@pytest.mark.parametrize(
    "nodes, cfg, sampler, batch",
    [
        ((), 4.0, "euler", 1),
        ((), 1.0, "euler", 2),
        ((), 0.0, "euler", 1),
        ((), 4.0, "heun", 2),
        ((), 4.0, "euler_cfg_pp", 1),
        ((LATE, ZERO_STAR, SKIP, RENORM), 4.0, "euler", 2),
        ((NEGATIVE,), 4.0, "euler", 1),
    ],
    ids=str,
)
def test_the_latent_is_the_same(run_node, klein, probed, nodes, cfg, sampler, batch):
    expected = run(with_nodes(run_node, klein, *nodes), cfg, sampler, batch)
    for before, after in ((nodes, ()), ((), nodes)):
        model, probe = probed(before, after)
        assert torch.equal(run(model, cfg, sampler, batch), expected)
        assert probe.runs[0].calls


@pytest.mark.parametrize(
    "nodes, cfg, wanted",
    [
        ((), 4.0, {"cfg": [4] * 4, "passes": [2] * 4, "blocks": [6] * 4}),
        ((), 1.0, {"cfg": [1] * 4, "passes": [1] * 4, "blocks": [3] * 4}),
        ((LATE,), 4.0, {"cfg": [4, 4, 1, 1], "passes": [2, 2, 1, 1], "blocks": [6, 6, 3, 3]}),
        ((NEGATIVE,), 4.0, {"cfg": [0] * 4, "passes": [1] * 4, "blocks": [3] * 4}),
        ((ZERO_STAR,), 4.0, {"cfg": [None, 4, 4, 4], "passes": [0, 2, 2, 2], "blocks": [0, 6, 6, 6]}),
        # The skip pass runs the block behind the skipped one alone.
        ((SKIP,), 4.0, {"cfg": [4] * 4, "passes": [3, 3, 2, 2], "blocks": [7, 7, 6, 6]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", (1, 3))
def test_cfg_passes_and_blocks(probed, nodes, cfg, wanted, batch):
    model, probe = probed(after=nodes)
    run(model, cfg, batch=batch)
    assert {name: column(probe, name) for name in wanted} == wanted
    assert column(probe, "step") == [0, 1, 2, 3]
    assert column(probe, "sigma") == pytest.approx(SIGMAS[:-1].tolist(), rel=1e-6)
    assert probe.runs[0].guidance == [node for node, _ in nodes] and probe.runs[0].latent == [batch, 128, 2, 3]


def watched(model):
    """A clone of a model that hands the predictions of every step to a list, through a hook of its own."""
    seen, clone = [], model.clone()

    def note(args):
        seen.append(
            {
                name: args[name].double().numpy()
                for name in ("input", "cond_denoised", "uncond_denoised", "sigma")
                if args[name] is not None
            }
        )
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(note)
    return clone, seen


def test_the_measures_by_their_formulas(probed, klein):
    model, seen = watched(klein)
    model, probe = probed(after=(RENORM, SLERP), model=model)
    run(model, batch=2)
    for call, step in zip(probe.runs[0].calls, seen, strict=True):
        sigma = step["sigma"].reshape(-1, 1)
        c, u = (((step["input"] - step[name]).reshape(2, -1)) / sigma for name in ("cond_denoised", "uncond_denoised"))
        dot, sizes = (c * u).sum(1), [np.sqrt((v * v).sum(1)) for v in (c, u)]
        expected = {
            "cond_norm": sizes[0].mean(),
            "uncond_norm": sizes[1].mean(),
            "cosine": (dot / sizes[0] / sizes[1]).min(),
            "alpha": (dot / sizes[1] ** 2).mean(),
            # Renorm gives the guided velocity the norm of the positive one.
            "norm_ratio": 1.0,
        }
        assert {name: call[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "nodes, cfg, missing",
    [
        ((), 1.0, {"uncond_norm", "cosine", "alpha"}),
        ((NEGATIVE,), 4.0, {"cond_norm", "cosine", "alpha", "norm_ratio"}),
        ((), 4.0, set()),
    ],
    ids=["negative", "positive", "nothing"],
)
def test_what_did_not_run_is_null(probed, nodes, cfg, missing):
    model, probe = probed(after=nodes)
    run(model, cfg)
    for call in probe.runs[0].calls:
        assert {name for name, value in call.items() if value is None} == missing


def test_a_zero_step_measures_nothing(probed):
    model, probe = probed(after=(ZERO_STAR,))
    run(model)
    first, *others = probe.runs[0].calls
    assert {name for name, value in first.items() if value is None} == {
        "cfg",
        "cond_norm",
        "uncond_norm",
        "cosine",
        "alpha",
        "norm_ratio",
    }
    assert all(None not in call.values() for call in others)


def test_heun_has_a_record_for_each_of_its_calls(probed):
    model, probe = probed()
    run(model, sampler="heun")
    # The second call of a step is at the sigma of the next one, and counts as that step's.
    assert column(probe, "step") == [0, 1, 1, 2, 2, 3, 3]


def test_the_negative_of_another_model_is_counted(probed):
    base = small_klein(seed=5, double_blocks=1, single_blocks=2)
    model, probe = probed(after=(("KleinKitBaseUncond", {"base_model": base}),))
    run(model)
    assert column(probe, "passes") == [2] * 4 and column(probe, "blocks") == [2 * BLOCKS] * 4


def test_every_mask_is_a_pass(probed):
    model, probe = probed()
    mask = torch.zeros(1, 32, 48)
    mask[..., :24] = 1.0
    left, right = (text(seed, mask=m, mask_strength=1.0) for seed, m in ((1, mask), (3, 1 - mask)))
    run(model, positive=left + right)
    assert column(probe, "passes") == [3] * 4


def test_ksampler_and_sampler_custom_advanced(run_node, probed):
    positive, negative = text(1), text(2)
    latent = {"samples": torch.zeros(1, 128, 4, 4)}
    model, probe = probed()
    run_node(
        "KSampler",
        model=model,
        seed=1,
        steps=3,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
    )
    assert column(probe, "cfg") == [3.0] * 3
    [guider] = run_node("BasicGuider", model=model, conditioning=positive)
    [noise], [sampler] = run_node("RandomNoise", noise_seed=1), run_node("KSamplerSelect", sampler_name="euler")
    run_node("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=SIGMAS, latent_image=latent)
    assert column(probe, "cfg") == [1.0] * 4 and column(probe, "passes") == [1] * 4


def test_two_probes_see_the_same_run(run_node, probed):
    model, first = probed()
    model, second = run_node("KleinKitProbe", model=model)
    run(model)
    assert first.runs == second.runs and first.runs[0].calls


def test_each_sampler_keeps_its_last_prompt(probed):
    from comfy_execution.utils import CurrentNodeContext

    model, probe = probed()
    for prompt, sampler, cfg in (("p", "3", 2.0), ("p", "3", 3.0), ("p", "5", 4.0), ("q", "5", 5.0), ("r", "5", 6.0)):
        with CurrentNodeContext(prompt, sampler):
            run(model, cfg, sigmas=torch.tensor([1.0, 0.0]))
    assert [(one.sampler, one.calls[0]["cfg"]) for one in probe.runs] == [("3", 2.0), ("3", 3.0), ("5", 6.0)]


def test_without_a_probe_nothing_is_measured(monkeypatch, run_node, klein, probed, pack):
    calls = []
    module = pack("engine.watch")

    def counted(original):
        return lambda *args: calls.append(1) or original(*args)

    monkeypatch.setattr(pack("engine.sampling"), "Watch", counted(module.Watch))
    monkeypatch.setattr(module, "velocity_measures", counted(module.velocity_measures))
    model, _ = probed()
    run(model)
    assert len(calls) == 1 + 4
    run(with_nodes(run_node, klein, LATE, ZERO_STAR, SKIP, RENORM))
    assert len(calls) == 1 + 4


def test_not_a_flow_model(run_node, klein):
    import comfy.model_base

    model = klein.clone()
    eps = comfy.model_base.model_sampling(model.model.model_config, comfy.model_base.ModelType.EPS)
    model.add_object_patch("model_sampling", eps)
    with pytest.raises(ValueError, match="^Klein Probe: Expected `model` to be a flow matching model"):
        run_node("KleinKitProbe", model=model)


def test_the_blocks_of_a_compiled_model_are_left_alone(probed, klein):
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

    # The mark of ComfyUI's TorchCompileModel: hooks on blocks would have it compiled anew.
    compiled = klein.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, lambda executor, *args, **kw: executor(*args, **kw))
    model, probe = probed(model=compiled)
    run(model, sigmas=SIGMAS[-2:])
    assert column(probe, "passes") == [2] and column(probe, "blocks") == [None]


@pytest.mark.parametrize("server", [None, SimpleNamespace(), SimpleNamespace(client_id="me")], ids=str)
def test_a_worker_without_a_server(monkeypatch, probed, server):
    from server import PromptServer

    monkeypatch.setattr(PromptServer, "instance", server)
    model, probe = probed()
    run(model, sigmas=SIGMAS[-2:])
    assert column(probe, "cfg") == [4.0]


def test_infinite_predictions_are_null(probed):
    model, probe = probed()
    run(model, positive=text(1, torch.nan))
    assert column(probe, "cond_norm") == [None] * 4 and column(probe, "uncond_norm")[0] > 0


def test_a_probe_alone_reports_nan_once(probed, caplog):
    model, _ = probed()
    run(model, positive=text(1, torch.nan))
    said = [record.getMessage() for record in caplog.records if "NaN" in record.getMessage()]
    assert said == [
        "KleinKit: NaN or infinity from the model (cond) in step 1 of 4, at sigma 1. Expect a black picture. "
        "Guidance: plain CFG."
    ]
    caplog.clear()
    run(model)
    assert "NaN" not in caplog.text


def test_with_a_rule_nan_is_reported_once_too(probed, caplog):
    model, _ = probed(after=(RENORM,))
    run(model, positive=text(1, torch.nan))
    assert caplog.text.count("NaN or infinity from the model (cond) in step 1 of 4") == caplog.text.count("NaN") == 1


class TestReport:
    @pytest.fixture
    def report(self, run_node):
        def report(probe):
            plot, text = run_node("KleinKitReport", probe=[probe], latent=[{"samples": torch.zeros(1, 128, 4, 4)}])
            return plot, json.loads(text, parse_constant=pytest.fail)

        return report

    def test_plot_and_json_are_what_the_probe_recorded(self, probed, report, pack):
        model, probe = probed(after=(LATE, ZERO_STAR))
        run(model)
        plot, record = report(probe)
        assert [one["calls"] for one in record["runs"]] == [one.calls for one in probe.runs]
        assert_as_documented(record, Path(pack("nodes").__file__).parent.parent / "web" / "docs" / "KleinKitReport.md")
        assert plot.shape[0] == 1 and plot.shape[3] == 3 and plot.dtype == torch.float32
        assert 0.0 <= plot.min() < 0.3 < 0.9 < plot.max() <= 1.0

    def test_without_a_run_it_says_what_to_do(self, probed, report):
        with pytest.raises(ValueError, match="^Klein Report: Expected `probe` to have records of the run that made `latent`"):
            report(probed()[1])

    def test_without_matplotlib_only_this_node_fails(self, monkeypatch, probed, report, pack):
        model, probe = probed()
        run(model)
        monkeypatch.delitem(sys.modules, pack("report").__name__ + ".plot", raising=False)
        monkeypatch.delattr(pack("report"), "plot", raising=False)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ValueError, match="^Klein Report: The plot needs matplotlib in ComfyUI's Python"):
            report(probe)


def assert_as_documented(record, page):
    """A report has the names that its node's help page lists, and their types."""
    text = page.read_text("utf-8").partition("\n## JSON\n")[2].partition("\n## ")[0]
    rows, prefix = {}, ""
    for start, name, kind in re.findall(r"^(?:Each of `([\w.\[\]]+)`:|- `(\w+)`, ([^:]+): )", text, re.MULTILINE):
        prefix = f"{start}." if start else prefix
        if name:
            rows[prefix + name] = kind
    kinds = {"number": (int, float), "integer": int, "text": str, "list": list, "null": type(None)}
    found = set()

    def check(prefix, value):
        for key, item in value.items():
            name = prefix + key
            found.add(name)
            assert isinstance(item, tuple(kinds[word] for word in rows[name].split(" or "))), name
            for one in item if isinstance(item, list) else ():
                if isinstance(one, dict):
                    check(f"{name}[].", one)

    check("", record)
    assert found == set(rows) and record["schema"] == "kleinkit.report/1"
