"""What the pack's nodes show before a run, for the graph that they are in; in both renderers."""

import re

import pytest
from editor import choose, connect, enter, figure, flux2, one_renderer, run
from kleinkit.harness import server as api
from kleinkit.harness.editor import add_node
from kleinkit.harness.workflow import NANO, change, for_nano, nodes, put, read
from PIL import ExifTags, Image
from playwright.sync_api import expect

DISTILLED, BASE = (NANO[f"flux-2-klein-{variant}4b.safetensors"] for variant in ("", "base-"))


def add(page, *kinds):
    """Nodes beside those that are there; their ids."""
    first = page.evaluate("app.graph.nodes.length")
    return [add_node(page, kind, 320 * (number % 4), 480 * (number // 4)) for number, kind in enumerate(kinds, first)]


def select(page, node):
    """Select a node, so that keys are for it."""
    page.evaluate(
        """(id) => {
        app.canvas.selectNode(app.graph.getNodeById(id))
        app.canvas.canvas.focus()
    }""",
        node,
    )


def put_mode(page, node, key):
    """Bypass (Ctrl+B) or mute (Ctrl+M) a node, or undo it."""
    select(page, node)
    was = page.evaluate("(id) => app.graph.getNodeById(id).mode", node)
    page.keyboard.press(key)
    page.wait_for_function("([id, was]) => app.graph.getNodeById(id).mode !== was", arg=[node, was])
    page.evaluate("app.canvas.deselectAll()")


def title(page, node):
    """What stands on a node."""
    return page.evaluate("(id) => app.graph.getNodeById(id).title", node)


BYPASS, MUTE = "Control+b", "Control+m"


@pytest.fixture
def sampled(page):
    """A loader, a node of guidance and KSampler, 8 steps at cfg 5: their ids."""
    loader, cfg, sampler = add(page, "KleinKitLoader", "KleinKitCFG", "KSampler")
    connect(page, (loader, 0, cfg, "model"), (cfg, 0, sampler, "model"))
    enter(page, sampler, "steps", 8)
    enter(page, sampler, "cfg", 5)
    return loader, cfg, sampler


def test_a_distilled_model_runs_one_pass_a_step(page, sampled):
    loader, _, _ = sampled
    choose(page, loader, "diffusion_model", DISTILLED)
    expect(figure(page, "8 steps: 8 of 8 passes.")).to_contain_text(
        "distilled model: cfg 5 counts as 1, and the negative prompt"
    )
    said = "distilled: 4 steps, cfg 1. A higher cfg has no effect, and the negative prompt only with Klein NAG."
    expect(figure(page, said)).to_be_visible()
    # Nodes 2.0 keeps it among the advanced ones, out of sight.
    page.evaluate(
        """(id) => {
        const widget = app.graph.getNodeById(id).widgets.find(({ name }) => name === "distilled_cfg")
        widget.value = "allow"
        widget.callback("allow")
    }""",
        loader,
    )
    expect(figure(page, "8 steps: 16 of 16 passes.")).not_to_contain_text("counts as 1")
    expect(figure(page, "`distilled_cfg` allows a higher one.")).to_be_visible()
    choose(page, loader, "diffusion_model", BASE)
    expect(figure(page, "base: 50 steps, cfg 4.")).to_be_visible()
    expect(figure(page, "8 steps: 16 of 16 passes.")).not_to_contain_text("not known")


def test_a_preset_names_its_nodes_and_shows_its_plan(page):
    loader, preset, sampler = add(page, "KleinKitLoader", "KleinKitGuidance", "KSampler")
    connect(page, (loader, 0, preset, "model"), (preset, 0, sampler, "model"))
    choose(page, loader, "diffusion_model", BASE)
    enter(page, sampler, "steps", 10)
    enter(page, sampler, "cfg", 4)
    expect(figure(page, "10 steps: 20 of 20 passes.")).to_contain_text("no guidance nodes")
    choose(page, preset, "preset", "high_cfg")
    expect(figure(page, "10 steps: 20 of 20 passes.")).to_contain_text("does: Klein Renorm")
    choose(page, preset, "preset", "faster")
    # The first step is guided, and the sixth.
    expect(figure(page, "10 steps: 12 of 20 passes, 40 % saved.")).to_contain_text("does: Klein CFG, Klein Adaptive Guidance")


def test_every_rule_between_loader_and_sampler_counts(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    zero, skip, adaptive = add(page, "KleinKitCFGZeroStar", "KleinKitSkipLayerGuidance", "KleinKitAdaptiveGuidance")
    enter(page, zero, "zero_init_steps", 1)
    enter(page, skip, "single_layers", 1)
    connect(page, (loader, 0, zero, "model"), (zero, 0, cfg, "model"))
    # A first step without a pass, and 7 with two.
    expect(figure(page, "8 steps: 14 of 16 passes, 13 % saved.")).to_be_visible()
    connect(page, (cfg, 0, skip, "model"), (skip, 0, sampler, "model"))
    # In the steps 2, 3 and 4 a third.
    expect(figure(page, "8 steps: 17 of 16 passes, 6 % more.")).to_be_visible()
    connect(page, (skip, 0, adaptive, "model"), (adaptive, 0, sampler, "model"))
    expect(figure(page, "17 of 16 passes")).to_contain_text("fewer once Klein Adaptive Guidance decides")
    put_mode(page, skip, BYPASS)
    expect(figure(page, "8 steps: 14 of 16 passes")).to_be_visible()


@one_renderer
def test_of_two_schedules_the_later_counts(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    [later] = add(page, "KleinKitCFG")
    connect(page, (cfg, 0, later, "model"), (later, 0, sampler, "model"))
    choose(page, later, "schedule", "interval")
    enter(page, later, "schedule.end", 0.5)
    expect(figure(page, "8 steps: 12 of 16 passes")).to_have_count(2)
    expect(figure(page, "A later Klein CFG takes the place of this one.")).to_have_count(1)


def test_what_is_not_known_is_said(page, sampled):
    loader, cfg, sampler = sampled
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", loader)
    expect(figure(page, "not known, assumed: a model that is not distilled.")).to_be_visible()
    theirs, plain = add(page, "PerturbedAttentionGuidance", "UNETLoader")
    connect(page, (plain, 0, theirs, "model"), (theirs, 0, cfg, "model"))
    expect(figure(page, "8 steps: 16 of 16 passes. not counted: PerturbedAttentionGuidance.")).to_be_visible()
    expect(figure(page, "not known")).to_have_count(0)


@one_renderer
def test_a_part_of_a_run_is_as_long_as_it_is(page):
    cfg, sampler = add(page, "KleinKitCFG", "KSamplerAdvanced")
    connect(page, (cfg, 0, sampler, "model"))
    choose(page, cfg, "schedule", "interval")
    enter(page, cfg, "schedule.end", 0.5)
    enter(page, sampler, "steps", 12)
    expect(figure(page, "12 steps: 18 of 24 passes")).not_to_contain_text("sigmas")
    enter(page, sampler, "start_at_step", 4)
    enter(page, sampler, "end_at_step", 8)
    # By steps, not by sigmas.
    expect(figure(page, "4 steps: 6 of 8 passes")).not_to_contain_text("sigmas")
    choose(page, cfg, "schedule", "diminishing")
    expect(figure(page, "4 steps: ")).to_contain_text("the sigmas of a whole run")


@one_renderer
def test_a_guider_without_a_negative_runs_one_pass(page):
    cfg, basic, scheduler, sampler = add(page, "KleinKitCFG", "BasicGuider", "KleinKitScheduler", "SamplerCustomAdvanced")
    connect(page, (cfg, 0, basic, "model"), (basic, 0, sampler, "guider"), (scheduler, 0, sampler, "sigmas"))
    expect(figure(page, "20 steps: 20 of 20 passes")).not_to_contain_text("cfg")
    choose(page, cfg, "schedule", "curve")
    expect(figure(page, "20 steps: ")).to_contain_text(f"not counted: {title(page, basic)}")


@one_renderer
@pytest.mark.parametrize("guider", ["DualCFGGuider", "PerpNegGuider"])
def test_a_guider_of_more_passes_is_not_counted(page, guider):
    cfg, other, scheduler, sampler = add(page, "KleinKitCFG", guider, "KleinKitScheduler", "SamplerCustomAdvanced")
    connect(page, (cfg, 0, other, "model"), (other, 0, sampler, "guider"), (scheduler, 0, sampler, "sigmas"))
    expect(figure(page, "20 steps: ")).to_contain_text(f"not counted: {title(page, other)}")


@one_renderer
def test_a_sampler_that_asks_more_often_is_not_counted(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    expect(figure(page, "8 steps: 16 of 16 passes")).not_to_contain_text("not counted")
    choose(page, sampler, "sampler_name", "heun")
    expect(figure(page, "8 steps: 16 of 16 passes")).to_contain_text("not counted: heun")
    select_sampler, guider, scheduler, custom = add(
        page, "KSamplerSelect", "CFGGuider", "KleinKitScheduler", "SamplerCustomAdvanced"
    )
    choose(page, select_sampler, "sampler_name", "dpmpp_sde")
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", sampler)
    connect(page, (cfg, 0, guider, "model"), (guider, 0, custom, "guider"), (scheduler, 0, custom, "sigmas"))
    connect(page, (select_sampler, 0, custom, "sampler"))
    expect(figure(page, "20 steps: 40 of 40 passes")).to_contain_text("not counted: dpmpp_sde")


@one_renderer
@pytest.mark.parametrize("kind", ["ConditioningCombine", "ConditioningSetTimestepRange"])
def test_prompts_that_are_not_one_pass_are_not_counted(page, sampled, kind):
    loader, _, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    other, zero = add(page, kind, "ConditioningZeroOut")
    connect(page, (other, 0, zero, "conditioning"), (zero, 0, sampler, "positive"))
    # A link that no hand has drawn is seen with the next change.
    enter(page, sampler, "steps", 9)
    expect(figure(page, "9 steps: 18 of 18 passes")).to_contain_text(f"not counted: {title(page, other)}")


@pytest.mark.parametrize(
    "key, says", [(BYPASS, "bypassed: this node changes nothing."), (MUTE, "muted: this node does not run.")]
)
def test_a_node_that_is_off_has_no_bright_preview(page, key, says):
    [node] = add(page, "KleinKitCFG")
    expect(figure(page, "20 steps")).to_be_visible()
    put_mode(page, node, key)
    expect(figure(page, says)).to_have_css("opacity", "0.45")
    put_mode(page, node, key)
    expect(figure(page, "20 steps: 40 of 40 passes")).to_have_css("opacity", "1")


def test_in_a_subgraph_the_outer_graph_is_known(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", DISTILLED)
    scheduler, latent = add(page, "KleinKitScheduler", "EmptyFlux2LatentImage")
    enter(page, latent, "width", 512)
    connect(page, (loader, 3, scheduler, "steps"), (latent, 0, scheduler, "latent"), (latent, 0, sampler, "latent_image"))
    expect(figure(page, flux2(4, 2048))).to_be_visible()
    outside = page.evaluate(
        """(ids) => {
        const { subgraph, node } = app.graph.convertToSubgraph(new Set(ids.map((id) => app.graph.getNodeById(id))))
        app.canvas.openSubgraph(subgraph, node)
        return node.id
    }""",
        [cfg, scheduler],
    )
    expect(figure(page, flux2(4, 2048))).to_be_visible()
    expect(figure(page, "8 steps: 8 of 8 passes. distilled model: cfg 5 counts as 1")).to_be_visible()
    expect(figure(page, "not known")).to_have_count(0)
    page.evaluate("app.canvas.setGraph(app.rootGraph)")
    select(page, latent)
    page.keyboard.press("Delete")
    page.wait_for_function("(id) => !app.rootGraph.getNodeById(id)", arg=latent)
    page.evaluate(
        """(id) => {
        const node = app.graph.getNodeById(id)
        app.canvas.openSubgraph(node.subgraph, node)
    }""",
        outside,
    )
    expect(figure(page, "not known, assumed: 1024×1024")).to_be_visible()


@one_renderer
def test_sampler_and_loader_in_a_subgraph_are_known_outside(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", DISTILLED)
    expect(figure(page, "8 steps: 8 of 8 passes.")).to_be_visible()
    for one in (loader, sampler):
        page.evaluate("(id) => void app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))", one)
    put_mode(page, cfg, BYPASS)
    put_mode(page, cfg, BYPASS)
    expect(figure(page, "8 steps: 8 of 8 passes. distilled model: cfg 5 counts as 1")).to_be_visible()
    expect(figure(page, "not known")).to_have_count(0)


def test_the_panel_leaves_a_preview_as_it_is(page):
    [node] = add(page, "KleinKitCFG")
    page.evaluate(
        "(id) => { app.graph.getNodeById(id).setSize([380, 320]); app.canvas.setDirty(true, true) }",
        node,
    )
    expect(figure(page, "20 steps")).to_be_visible()
    size = """() => {
        const { width, height } = document.querySelector(".kleinkit-figure").getBoundingClientRect()
        return [width, height]
    }"""
    page.wait_for_function("document.querySelector('.kleinkit-figure').getBoundingClientRect().width > 300")
    before = page.evaluate(size)
    toggle = page.get_by_role("button", name="Toggle properties panel")
    toggle.click()
    page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    panel = page.get_by_test_id("properties-panel")
    expect(panel).to_contain_text("schedule")
    page.evaluate("async () => { for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame) }")
    assert page.evaluate(size) == before
    expect(panel.get_by_text("preview", exact=True)).to_have_count(0)
    toggle.click()


def see(page):
    """Have the previews look: links that no hand has drawn are seen with the next change."""
    page.evaluate("app.api.dispatchEvent(new CustomEvent('graphChanged'))")


def prompted(page, node):
    """The inputs of a node in the prompt of the graph."""
    return page.evaluate("async (id) => (await app.graphToPrompt()).output[id].inputs", str(node))


@one_renderer
def test_a_primitive_is_known_whatever_its_widget_is_called(page, sampled):
    loader, _, sampler = sampled
    files, steps = add(page, "PrimitiveNode", "PrimitiveNode")
    connect(page, (files, 0, loader, "diffusion_model"), (steps, 0, sampler, "steps"))
    for node, value in (files, DISTILLED), (steps, 6):
        page.evaluate(
            """([id, value]) => {
            const [widget] = app.graph.getNodeById(id).widgets
            widget.value = value
            widget.callback(value)
        }""",
            [node, value],
        )
    see(page)
    expect(figure(page, "distilled: 4 steps, cfg 1")).to_be_visible()
    expect(figure(page, "6 steps: 6 of 6 passes")).not_to_contain_text("not known")


@one_renderer
def test_what_a_link_to_nothing_leaves_is_what_runs(page, sampled):
    loader, _, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    steps, reroute = add(page, "PrimitiveInt", "Reroute")
    enter(page, steps, "value", 5)
    connect(page, (steps, 0, sampler, "steps"))
    see(page)
    expect(figure(page, "5 steps: 10 of 10 passes")).to_be_visible()
    for key in MUTE, BYPASS:
        put_mode(page, steps, key)
        see(page)
        assert prompted(page, sampler)["steps"] == 8
        expect(figure(page, "8 steps: 16 of 16 passes")).not_to_contain_text("not known")
        put_mode(page, steps, key)
        expect(figure(page, "5 steps: 10 of 10 passes")).to_be_visible()
    connect(page, (reroute, 0, sampler, "steps"))
    see(page)
    assert prompted(page, sampler)["steps"] == 8
    expect(figure(page, "8 steps: 16 of 16 passes")).not_to_contain_text("not known")


@one_renderer
def test_a_switch_between_two_loaders_is_followed(page, sampled):
    base, cfg, _ = sampled
    distilled, switch, choice = add(page, "KleinKitLoader", "ComfySwitchNode", "PrimitiveBoolean")
    choose(page, base, "diffusion_model", BASE)
    choose(page, distilled, "diffusion_model", DISTILLED)
    connect(page, (base, 0, switch, "on_false"), (distilled, 0, switch, "on_true"), (switch, 0, cfg, "model"))
    for linked in False, True:
        if linked:
            connect(page, (choice, 0, switch, "switch"))
        for on, says in (False, "8 steps: 16 of 16 passes"), (True, "8 steps: 8 of 8 passes"):
            page.evaluate(
                "([id, on]) => { app.graph.getNodeById(id).widgets[0].value = on }", [choice if linked else switch, on]
            )
            see(page)
            expect(figure(page, says)).not_to_contain_text("not counted")


SET_AND_GET = """() => {
    // As those of other packs: links of their own, which the editor follows when it makes a prompt.
    class Set extends LiteGraph.LGraphNode {
        constructor() { super("Set"); this.isVirtualNode = true; this.addInput("MODEL", "MODEL") }
    }
    class Get extends LiteGraph.LGraphNode {
        constructor() { super("Get"); this.isVirtualNode = true; this.addOutput("MODEL", "MODEL") }
        getInputLink() {
            const set = this.graph.nodes.find(({ type }) => type === "TestSet")
            return set && this.graph.links.get(set.inputs[0].link)
        }
    }
    LiteGraph.registerNodeType("TestSet", Set)
    LiteGraph.registerNodeType("TestGet", Get)
}"""


@one_renderer
def test_a_model_through_set_and_get_is_known(page, sampled):
    loader, cfg, _ = sampled
    choose(page, loader, "diffusion_model", DISTILLED)
    page.evaluate(SET_AND_GET)
    put_in, take = add(page, "TestSet", "TestGet")
    connect(page, (loader, 0, put_in, "MODEL"), (take, 0, cfg, "model"))
    see(page)
    assert prompted(page, cfg)["model"] == [str(loader), 0]
    expect(figure(page, "8 steps: 8 of 8 passes")).to_be_visible()
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", put_in)
    see(page)
    expect(figure(page, "8 steps: 16 of 16 passes")).to_contain_text("not known, assumed: a model that is not distilled")


@one_renderer
def test_dynamic_shift_knows_the_run_that_it_is_for(page):
    shift, sampler, latent, scaled = add(
        page, "KleinKitDynamicShift", "KSamplerAdvanced", "EmptyFlux2LatentImage", "LatentUpscale"
    )
    enter(page, sampler, "steps", 10)
    enter(page, latent, "width", 512)
    connect(page, (shift, 0, sampler, "model"), (latent, 0, sampler, "latent_image"))
    see(page)
    shown = figure(page, flux2(10, 2048))
    expect(shown).not_to_contain_text("not known")
    choose(page, sampler, "scheduler", "beta")
    expect(shown).to_contain_text("drawn for scheduler simple, not for beta")
    choose(page, sampler, "scheduler", "simple")
    expect(shown).not_to_contain_text("drawn")
    # 0 is what fits the other side: no size that could be told.
    page.evaluate("(id) => { app.graph.getNodeById(id).widgets[1].value = 0 }", scaled)
    connect(page, (latent, 0, scaled, "samples"), (scaled, 0, sampler, "latent_image"))
    see(page)
    expect(figure(page, flux2(10))).to_contain_text("not known, assumed: 1024×1024")
    basic, guider, custom = add(page, "BasicScheduler", "CFGGuider", "SamplerCustomAdvanced")
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", sampler)
    connect(page, (shift, 0, basic, "model"), (shift, 0, guider, "model"), (guider, 0, custom, "guider"))
    connect(page, (basic, 0, custom, "sigmas"), (latent, 0, custom, "latent_image"))
    see(page)
    expect(figure(page, flux2(20, 2048))).not_to_contain_text("not known")


@one_renderer
@pytest.mark.parametrize("shifted", [True, False], ids=["shifted", "plain"])
def test_a_schedule_over_sigma_is_counted_by_the_sigmas_that_run(page, server, shifted):
    """By those of the sampler: of its denoise, its size, and its shift."""
    api.forget(server)
    page.evaluate("(graph) => app.loadGraphData(graph)", for_nano(read("01 Klein First Picture")))
    loader, shift, sampler = (
        page.evaluate("(kind) => app.graph.nodes.find(({ type }) => type === kind).id", kind)
        for kind in ("KleinKitLoader", "KleinKitDynamicShift", "KSampler")
    )
    cfg = add_node(page, "KleinKitCFG")
    connect(page, (shift if shifted else loader, 0, cfg, "model"), (cfg, 0, sampler, "model"))
    page.evaluate(
        """([cfg, sampler]) => {
        const put = (id, name, value) => {
            const widget = app.graph.getNodeById(id).widgets.find((widget) => widget.name === name)
            widget.value = value
            widget.callback?.(value)
        }
        const node = app.graph.getNodeById(sampler)
        for (const name of ["steps", "cfg"]) node.disconnectInput(node.findInputSlot(name))
        put(sampler, "steps", 8)
        put(sampler, "denoise", 0.6)
        put(cfg, "schedule", "diminishing")
        put(cfg, "schedule.cutoff", 0.4)
    }""",
        [cfg, sampler],
    )
    see(page)
    shown = figure(page, "8 steps: ")
    expect(shown).not_to_contain_text("not known")
    expect(shown).to_contain_text("saved")
    total = int(re.search(r"8 steps: (\d+) of 16 passes", shown.get_attribute("aria-label"))[1])
    before = server.log.stat().st_size
    assert run(page)["type"] == "execution_success"
    assert f"KleinKit: 8 steps, {total} passes (" in api.read_log(server.log, before)
    assert 8 < total < 16
    page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find(({ name }) => name === 'scheduler').value = 'beta' }", sampler
    )
    see(page)
    expect(shown).to_contain_text("not known, assumed: scheduler simple")


@one_renderer
def test_which_of_two_samplers_is_counted_is_said(page, sampled):
    loader, cfg, sampler = sampled
    choose(page, loader, "diffusion_model", BASE)
    expect(figure(page, "8 steps: 16 of 16 passes")).not_to_contain_text("samplers")
    [second] = add(page, "KSampler")
    page.evaluate("(id) => { app.graph.getNodeById(id).title = 'First pass' }", sampler)
    connect(page, (cfg, 0, second, "model"))
    see(page)
    expect(figure(page, "8 steps: 16 of 16 passes")).to_contain_text("for First pass, the nearest of 2 samplers")


@one_renderer
def test_a_server_that_comes_back_while_a_preview_waits(page, errors):
    [node] = add(page, "KleinKitScheduler")
    expect(figure(page, "20 steps")).to_be_visible()
    waiting = []
    page.route("**/kleinkit/sigmas", lambda route: waiting.append(route), times=1)
    with page.expect_request("**/kleinkit/sigmas"):
        enter(page, node, "steps", 9)
    page.evaluate("app.api.dispatchEvent(new CustomEvent('reconnected'))")
    waiting[0].abort()
    expect(figure(page, flux2(9))).to_be_visible()
    assert len(errors) == 1 and "/kleinkit/sigmas" in errors.pop()


@one_renderer
@pytest.mark.refused("/kleinkit/loader")
def test_files_are_looked_at_anew_with_the_list_of_files(page, server):
    """R in the editor."""
    loader, cfg, sampler = add(page, "KleinKitLoader", "KleinKitCFG", "KSampler")
    connect(page, (loader, 0, cfg, "model"), (cfg, 0, sampler, "model"))
    late = server.base / "models" / "diffusion_models" / "late.safetensors"
    page.evaluate(
        """([id, name]) => {
        const [widget] = app.graph.getNodeById(id).widgets
        widget.value = name
        widget.callback(name)
    }""",
        [loader, late.name],
    )
    expect(figure(page, "No preview. 'late.safetensors' is not")).to_be_visible()
    late.hardlink_to(late.with_name(BASE))
    page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    expect(figure(page, "No preview")).to_have_count(0)
    expect(figure(page, "not known")).to_have_count(0)
    late.unlink()
    page.evaluate("app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    expect(figure(page, "No preview. 'late.safetensors' is not")).to_be_visible()
    expect(figure(page, "not known, assumed: a model that is not distilled")).to_be_visible()


@one_renderer
def test_a_sweep_that_is_none_is_said_while_it_is_typed(page, errors):
    [sweep] = add(page, "KleinKitSweep")
    expect(figure(page, "12 runs: 1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 50, 100.")).to_be_visible()
    enter(page, sweep, "values", "1:9:2, 0.5")
    expect(figure(page, "6 runs: 1, 3, 5, 7, 9, 0.5.")).to_be_visible()
    enter(page, sweep, "values", "one, 2")
    expect(
        figure(page, "Expected `values` to be finite numbers or ranges (such as `1, 2.5, 4:10:2`), but got 'one'.")
    ).to_be_visible()
    assert len(errors) == 1 and "400" in errors.pop()


@one_renderer
def test_layers_that_the_model_does_not_have_are_said_while_they_are_typed(page, errors):
    loader, skip = add(page, "KleinKitLoader", "KleinKitSkipLayerGuidance")
    enter(page, skip, "double_layers", "1-3, 2")
    expect(figure(page, "skips double 1–3; single 9.")).to_be_visible()
    enter(page, skip, "double_layers", "x")
    expect(figure(page, "Expected `double_layers` to be layers such as `9` or `7-9, 12`, but got 'x'.")).to_be_visible()
    assert len(errors) == 1 and "400" in errors.pop()
    enter(page, skip, "double_layers", "")
    expect(figure(page, "skips single 9.")).to_be_visible()
    # What nano has is too few for the default.
    choose(page, loader, "diffusion_model", DISTILLED)
    connect(page, (loader, 0, skip, "model"))
    expect(figure(page, "Expected `single_layers` to be layers of this model, 0 to 3")).to_be_visible()
    assert len(errors) == 1 and "400" in errors.pop()
    enter(page, skip, "single_layers", "1")
    expect(figure(page, "skips single 1.")).to_be_visible()


@one_renderer
def test_blurred_layers_are_not_said_to_be_skipped(page):
    [seg] = add(page, "KleinKitSEG")
    expect(figure(page, "blurs single 2.")).to_be_visible()
    enter(page, seg, "single_layers", "")
    expect(figure(page, "No layer is blurred.")).to_be_visible()


@one_renderer
def test_layers_of_a_weaker_version_give_way_to_a_model(page):
    loader, auto = add(page, "KleinKitLoader", "KleinKitAutoGuidance")
    expect(figure(page, "skips single 9.")).to_be_visible()
    connect(page, (loader, 0, auto, "weak_model"))
    expect(figure(page, "No layer is skipped.")).to_be_visible()


@one_renderer
def test_a_sweep_counts_its_runs(page, server):
    api.forget(server)
    graph = for_nano(read("15 Klein Guidance Study"))
    [sweep] = nodes(graph, "KleinKitSweep")
    put(sweep, values="1, 2, 3")
    change(graph, "KSampler", steps=4)
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    page.evaluate("""() => {
        app.canvas.ds.scale = 1
        app.canvas.centerOnNode(app.graph.nodes.find((node) => node.type === "KleinKitSweep"))
    }""")
    expect(figure(page, "3 runs: 1, 2, 3.")).to_be_visible()
    page.evaluate("""() => {
        window.said = []
        const figure = document.querySelector('.kleinkit-figure[aria-label^="3 runs"]')
        new MutationObserver(() => said.push(figure.getAttribute("aria-label"))).observe(figure, { attributes: true })
    }""")
    assert run(page)["type"] == "execution_success"
    expect(figure(page, "3 of 3 runs are done: 1, 2, 3.")).to_be_visible()
    counts = [text.split(" ")[0] for text in page.evaluate("said")]
    assert sorted(set(counts)) == sorted({"1", "2", "3"} & set(counts)) and counts == sorted(counts)


def test_the_size_that_counts_is_said(page):
    scheduler, latent = add(page, "KleinKitScheduler", "EmptyFlux2LatentImage")
    expect(figure(page, "for 1024×1024, 4096 tokens.")).not_to_contain_text("width and height are not used")
    enter(page, latent, "width", 512)
    connect(page, (latent, 0, scheduler, "latent"))
    expect(figure(page, flux2(20, 2048))).to_contain_text("The latent's size counts; width and height are not used.")
    expect(figure(page, "for 512×1024, 2048 tokens.")).to_be_visible()
    expect(figure(page, "not known")).to_have_count(0)


@one_renderer
def test_auto_goes_by_the_connected_model(page):
    loader, scheduler, cfg, sampler = add(page, "KleinKitLoader", "KleinKitScheduler", "KleinKitCFG", "KSampler")
    choose(page, loader, "diffusion_model", BASE)
    expect(figure(page, flux2(20))).to_be_visible()
    connect(page, (loader, 0, scheduler, "model"))
    expect(figure(page, flux2(20))).not_to_contain_text("not known")
    [plain] = add(page, "UNETLoader")
    connect(page, (plain, 0, scheduler, "model"))
    expect(figure(page, flux2(20))).to_contain_text("not known, assumed: shift flux2")
    choose(page, scheduler, "shift", "flux3")
    expect(figure(page, "20 steps, mu 1.936")).not_to_contain_text("not known")
    # A scheduler is no sampler: what comes behind the node that it looks at counts as well.
    connect(page, (loader, 0, cfg, "model"), (cfg, 0, scheduler, "model"), (cfg, 0, sampler, "model"))
    enter(page, sampler, "steps", 8)
    expect(figure(page, "8 steps: 16 of 16 passes.")).to_be_visible()


@one_renderer
def test_auto_of_flux3(page):
    loader, scheduler = add(page, "KleinKitLoader", "KleinKitScheduler")
    choose(page, loader, "diffusion_model", "flux3-image-klein-bf16.safetensors")
    connect(page, (loader, 3, scheduler, "steps"), (loader, 0, scheduler, "model"))
    expect(figure(page, "16 steps, mu 1.936, start σ 1")).not_to_contain_text("not known")


@one_renderer
def test_a_fault_of_the_preview_itself_is_called_so(page, errors):
    [node] = add(page, "KleinKitScheduler")
    expect(figure(page, "20 steps")).to_be_visible()
    page.route("**/kleinkit/sigmas", lambda route: route.fulfill(json={}))
    enter(page, node, "steps", 9)
    expect(figure(page, "No preview. This preview has a fault:")).not_to_contain_text("server")
    page.unroute("**/kleinkit/sigmas")
    assert len(errors) == 1 and "TypeError" in errors.pop()


@one_renderer
@pytest.mark.refused("/kleinkit/loader")
def test_a_model_that_could_not_be_read_is_asked_for_again(page):
    # The scripts forget what they were told of files, also in the test of the other renderer.
    page.evaluate("app.api.dispatchEvent(new CustomEvent('reconnected'))")
    [loader] = add(page, "KleinKitLoader")
    sentence = "the file is damaged"
    page.route("**/kleinkit/loader", lambda route: route.fulfill(status=400, json={"error": sentence}))
    choose(page, loader, "diffusion_model", BASE)
    choose(page, loader, "variant", "base")
    expect(figure(page, f"No preview. {sentence}")).to_be_visible()
    page.unroute("**/kleinkit/loader")
    scheduler, cfg = add(page, "KleinKitScheduler", "KleinKitCFG")
    connect(page, (loader, 3, scheduler, "steps"), (loader, 0, cfg, "model"))
    expect(figure(page, flux2(50))).to_be_visible()
    expect(figure(page, "base: 50 steps, cfg 4.")).to_be_visible()


def test_symbols_are_explained(page):
    add(page, "KleinKitScheduler", "KleinKitProbe")
    head = figure(page, "20 steps, mu").locator(".head")
    expect(head.get_by_title("mu: how much of the run is spent at high noise")).to_have_text("mu")
    expect(head.get_by_title("tokens: squares of 16×16 pixels")).to_have_text("tokens")
    expect(head.get_by_title("σ (sigma): the share of noise")).to_have_text("σ")


@pytest.fixture
def photos(server):
    """Two pictures among the server's: one with no side of whole tokens, and one that its camera turned."""
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (1500, 1003)).save(folder / "photo.png")
    Image.new("RGB", (640, 320)).save(folder / "turned.jpg", exif=turned)
    yield "photo.png", "turned.jpg [input]"
    for name in ("photo.png", "turned.jpg"):
        (folder / name).unlink()


def load(page, node, name):
    """Have Load Image show a picture, as its upload does."""
    page.evaluate(
        """([id, name]) => {
        const widget = app.graph.getNodeById(id).widgets.find((widget) => widget.name === "image")
        widget.value = name
        widget.callback(name)
    }""",
        [node, name],
    )


def test_references_say_their_size_and_their_share(page, photos):
    references, first, second, scheduler = add(page, "KleinKitReferences", "LoadImage", "LoadImage", "KleinKitScheduler")
    expect(figure(page, "Connect a picture to see what becomes of it.")).to_be_visible()
    load(page, first, photos[0])
    connect(page, (first, 0, references, "images.image_1"), (references, 2, scheduler, "latent"))
    # 1500 × 1003 is scaled to 1252 × 837.
    shown = figure(page, "4\u202f056 of 8\u202f112 tokens are references.")
    expect(shown).to_contain_text("makes 1248×832, 4\u202f056 tokens\npicture 1: 1248×832, 4\u202f056 tokens")
    expect(figure(page, flux2(20, tokens=4056))).to_contain_text("for 1248×832, 4056 tokens")
    load(page, second, photos[1])
    connect(page, (second, 0, references, "images.image_2"))
    expect(figure(page, "4\u202f856 of 8\u202f912 tokens are references.")).to_contain_text("picture 2: 320×640, 800 tokens")
    choose(page, references, "latent_from", "width and height")
    enter(page, references, "latent_from.width", 512)
    expect(figure(page, "makes 512×1024, 2\u202f048 tokens")).to_contain_text("4\u202f856 of 6\u202f904 tokens are references")
    connect(page, (references, 3, scheduler, "width"), (references, 4, scheduler, "height"))
    page.evaluate("(id) => app.graph.getNodeById(id).disconnectInput(3)", references)
    page.evaluate(
        "([id, name]) => app.graph.getNodeById(id).disconnectInput(app.graph.getNodeById(id).findInputSlot(name))",
        [scheduler, "latent"],
    )
    expect(figure(page, flux2(20, tokens=2048))).to_contain_text("for 512×1024, 2048 tokens")


@one_renderer
def test_references_do_not_say_what_another_node_makes(page, photos):
    references, first, sampler, latent = add(page, "KleinKitReferences", "LoadImage", "KSampler", "EmptyFlux2LatentImage")
    load(page, first, photos[0])
    connect(page, (first, 0, references, "images.image_1"), (references, 0, sampler, "positive"))
    connect(page, (references, 2, sampler, "latent_image"))
    expect(figure(page, "tokens are references")).to_contain_text("makes 1248×832")
    connect(page, (latent, 0, sampler, "latent_image"))
    alone = figure(page, "picture 1: 1248×832, 4\u202f056 tokens")
    expect(alone).not_to_contain_text("makes")
    expect(alone).not_to_contain_text("references")


@one_renderer
def test_a_picture_of_unknown_size_is_said_to_be_so(page, photos):
    references, photo, scaled, batch = add(page, "KleinKitReferences", "LoadImage", "ImageScale", "EmptyImage")
    load(page, photo, photos[0])
    connect(
        page, (photo, 0, scaled, "image"), (scaled, 0, references, "images.image_1"), (batch, 0, references, "images.image_2")
    )
    said = figure(page, "picture 1: not known before the run. picture 2: 512×512, 1\u202f024 tokens.")
    expect(said).to_be_visible()
    expect(said).not_to_contain_text("references")
    enter(page, batch, "batch_size", 2)
    expect(figure(page, "picture 3: 512×512")).to_be_visible()


@one_renderer
@pytest.mark.parametrize("key", [MUTE, BYPASS], ids=["muted", "bypassed"])
def test_a_picture_that_is_off_is_none(page, photos, key):
    """A prompt leaves its input out."""
    references, first, second = add(page, "KleinKitReferences", "LoadImage", "LoadImage")
    load(page, first, photos[0])
    load(page, second, photos[1])
    connect(page, (first, 0, references, "images.image_1"), (second, 0, references, "images.image_2"))
    expect(figure(page, "4\u202f856 of 8\u202f912 tokens are references.")).to_be_visible()
    put_mode(page, second, key)
    expect(figure(page, "4\u202f056 of 8\u202f112 tokens are references.")).not_to_contain_text("picture 2")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert [name for name in prompt[str(references)]["inputs"] if name.startswith("images.")] == ["images.image_1"]


def test_references_of_a_saved_graph(page, photos):
    references, first, second = add(page, "KleinKitReferences", "LoadImage", "LoadImage")
    for node, name in zip((first, second), photos):
        load(page, node, name)
    links = (first, 0, references, "images.image_1"), (second, 0, references, "images.image_2"), (first, 1, references, "mask")
    connect(page, *links)
    choose(page, references, "latent_from", "width and height")
    expect(figure(page, "4\u202f856 of 8\u202f952 tokens")).to_be_visible()
    prompt = "app.graphToPrompt().then(({ output }) => output)"
    saved = page.evaluate(prompt)
    page.evaluate("app.loadGraphData(app.graph.serialize())")
    expect(figure(page, "4\u202f856 of 8\u202f952 tokens")).to_be_visible()
    assert page.evaluate(prompt) == saved
    inputs = saved[str(references)]["inputs"]
    assert {name: inputs[name] for _, _, _, name in links} == {name: [str(node), output] for node, output, _, name in links}
