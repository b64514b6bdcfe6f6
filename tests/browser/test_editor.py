"""The pack in ComfyUI's editor, in both of its renderers: what is seen, typed, saved, run and read."""

import json
import re

import pytest
from editor import (
    FILE,
    HTML,
    body,
    choose,
    enter,
    figure,
    flux2,
    frontend,
    in_vue,
    keep,
    one_renderer,
    overlapping,
    run,
    settle,
    shorten,
    switch,
    values,
)
from kleinkit.harness import server as api
from kleinkit.harness.editor import add_node
from kleinkit.harness.workflow import EXAMPLES, NANO, WORKFLOWS, as_prompt, for_nano, names, nodes, put, read
from playwright.sync_api import expect


def test_every_node_can_be_added(page, server):
    kinds = sorted(name for name in api.get(server, "/object_info") if name.startswith("KleinKit"))
    for number, kind in enumerate(kinds):
        add_node(page, kind, 340 * (number % 4), 600 * (number // 4))
    assert page.evaluate("app.graph.nodes.map((node) => node.type)") == kinds
    drawn = "app.graph.nodes.flatMap((node) => node.widgets ?? []).filter((widget) => widget.type.startsWith('KLEINKIT_'))"
    assert sorted(page.evaluate(f"{drawn}.map((widget) => widget.node.type)")) == [
        "KleinKitAutoGuidance",
        "KleinKitCFG",
        "KleinKitDynamicShift",
        "KleinKitGuidance",
        "KleinKitLoader",
        "KleinKitProbe",
        "KleinKitReferences",
        "KleinKitSEG",
        "KleinKitScheduler",
        "KleinKitSkipLayerGuidance",
        "KleinKitSweep",
    ]


def test_sigmas_follow_what_is_typed(page):
    node = add_node(page, "KleinKitScheduler")
    expect(figure(page, f"{flux2(20)} start σ 1")).to_be_visible()
    enter(page, node, "steps", 8)
    expect(figure(page, flux2(8))).to_be_visible()
    choose(page, node, "shift", "fixed")
    expect(figure(page, "8 steps, mu 1.15")).to_be_visible()
    enter(page, node, "shift.mu", 2)
    expect(figure(page, "8 steps, mu 2,")).to_be_visible()
    choose(page, node, "shift", "none")
    expect(figure(page, "8 steps, mu 0,")).to_be_visible()
    expect(figure(page).locator("path.dots")).to_have_attribute("d", re.compile("(M[0-9. ]+h0){9}"))
    assert values(page, node) == {
        "steps": 8,
        "width": 1024,
        "height": 1024,
        "denoise": 1,
        "denoise_mode": "ksampler",
        "shift": "none",
        "spacing": "uniform",
        "terminal": 0,
    }


def test_guidance_follows_what_is_typed(page):
    node = add_node(page, "KleinKitCFG")
    expect(figure(page, "20 steps: 40 of 40 passes")).to_be_visible()
    choose(page, node, "schedule", "interval")
    enter(page, node, "schedule.end", 0.5)
    expect(figure(page, "20 steps: 30 of 40 passes, 25 % saved")).to_be_visible()
    choose(page, node, "schedule", "curve")
    enter(page, node, "schedule.scales", "8, 1")
    expect(figure(page, "39 of 40 passes")).to_contain_text("8")


def test_text_that_is_no_curve_is_shown_as_text(page, errors):
    node = add_node(page, "KleinKitCFG")
    choose(page, node, "schedule", "curve")
    enter(page, node, "schedule.scales", HTML)
    expect(figure(page, "No preview")).to_contain_text(
        f"–\nExpected `scales` to be numbers between 0 and 100, such as `5, 3, 1`, but got '{HTML}'.", use_inner_text=True
    )
    expect(figure(page).locator("img")).to_have_count(0)
    assert values(page, node)["schedule.scales"] == HTML
    assert len(errors) == 1 and "400" in errors.pop()


def test_dynamic_shift_and_cfg_follow_the_sampler(page):
    kinds = ("KleinKitDynamicShift", "KleinKitCFG", "KSampler", "EmptyFlux2LatentImage")
    shift, cfg, sampler, latent = [
        add_node(page, kind, 320 * (number % 3), 330 * (number // 3)) for number, kind in enumerate(kinds)
    ]
    expect(figure(page, "not known, assumed: 20 steps, 1024×1024")).to_be_visible()
    page.evaluate(
        """([shift, cfg, sampler, latent]) => {
        const node = (id) => app.graph.getNodeById(id)
        node(shift).connect(0, node(cfg), 0)
        node(cfg).connect(0, node(sampler), 0)
        node(latent).connect(0, node(sampler), "latent_image")
    }""",
        [shift, cfg, sampler, latent],
    )
    enter(page, sampler, "steps", 12)
    enter(page, latent, "width", 512)
    expect(figure(page, flux2(12, 2048))).to_be_visible()
    expect(figure(page, "12 steps: 24 of 24 passes")).to_be_visible()
    expect(figure(page, "not known, assumed: 20")).to_have_count(0)


def test_previews_know_what_the_loader_gives(page):
    loader, scheduler, cfg, guider = [
        add_node(page, kind, 380 * number)
        for number, kind in enumerate(("KleinKitLoader", "KleinKitScheduler", "KleinKitCFG", "KSampler"))
    ]
    page.evaluate(
        """([loader, ...others]) => {
        const node = (id) => app.graph.getNodeById(id)
        const [scheduler, cfg, sampler] = others.map(node)
        node(loader).connect(3, scheduler, "steps")
        node(loader).connect(3, sampler, "steps")
        node(loader).connect(4, sampler, "cfg")
        cfg.connect(0, sampler, "model")
    }""",
        [loader, scheduler, cfg, guider],
    )
    choose(page, loader, "diffusion_model", NANO["flux-2-klein-4b.safetensors"])
    expect(figure(page, flux2(4))).to_be_visible()
    expect(figure(page, "4 steps: 4 of 4 passes")).to_be_visible()
    choose(page, loader, "variant", "base")
    expect(figure(page, flux2(50))).to_be_visible()
    expect(figure(page, "50 steps: 100 of 100 passes")).to_be_visible()
    expect(figure(page, "not known, assumed: 20")).to_have_count(0)


@one_renderer
def test_a_server_that_does_not_answer(page, errors):
    node = add_node(page, "KleinKitScheduler")
    expect(figure(page, "20 steps")).to_be_visible()
    page.route("**/kleinkit/**", lambda route: route.abort())
    enter(page, node, "steps", 9)
    expect(figure(page, "No preview. The server does not answer.")).to_contain_text("–")
    assert values(page, node)["steps"] == 9
    page.unroute("**/kleinkit/**")
    enter(page, node, "steps", 10)
    expect(figure(page, "10 steps")).to_be_visible()
    assert len(errors) == 1 and "/kleinkit/sigmas" in errors.pop()


def test_the_keyboard_and_screen_readers_reach_a_preview(page):
    add_node(page, "KleinKitScheduler")
    expect(figure(page, "20 steps")).to_be_visible()
    figure(page).focus()
    expect(page.get_by_role("img", name="20 steps").and_(figure(page))).to_be_focused()


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_previews_can_be_read_in_every_theme(page, palette):
    add_node(page, "KleinKitScheduler")
    page.evaluate("(palette) => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
    expect(figure(page, "20 steps")).to_be_visible()
    ratios = page.evaluate("""() => {
        const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true })
        const luminance = (colour) => {
            pixel.fillStyle = colour
            pixel.fillRect(0, 0, 1, 1)
            const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
                .map((value) => value > 0.04045 ? ((value + 0.055) / 1.055) ** 2.4 : value / 12.92)
            return 0.2126 * r + 0.7152 * g + 0.0722 * b
        }
        const of = (selector, name) => luminance(getComputedStyle(document.querySelector(selector))[name])
        const ground = of(".kleinkit-figure", "backgroundColor")
        const ratio = (one) => (Math.max(one, ground) + 0.05) / (Math.min(one, ground) + 0.05)
        return [ratio(of(".kleinkit-figure .head", "color")), ratio(of(".kleinkit-figure path.line", "stroke"))]
    }""")
    # What WCAG asks of text, and of graphics.
    assert ratios[0] >= 4.5 and ratios[1] >= 3.0


def test_nodes_that_overlap_are_found(page):
    # In Nodes 2.0 it is higher than its size in the file says, by its badge.
    upper, lower = (add_node(page, kind, 0, y) for kind, y in (("KleinKitInpaintStitch", 0), ("VAEDecode", 400)))
    settle(page)
    for pair in ("Klein Inpaint Stitch", "VAE Decode"), ():
        page.evaluate(
            """([upper, lower, apart]) => {
            const height = (id) => document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect().height
            const [above, below] = [upper, lower].map((id) => app.graph.getNodeById(id))
            below.pos = [above.size[0] - 10, (height(upper) ?? above.getBounding()[3]) + apart]
            app.canvas.setDirty(true, true)
        }""",
            [upper, lower, -1 if pair else 1],
        )
        settle(page)
        assert overlapping(page) == [pair] * bool(pair)


@pytest.mark.parametrize("name", names())
def test_a_workflow_opens_and_keeps_its_values_and_no_node_covers_another(page, name):
    graph = read(name)
    scale, unknown, *kept = page.evaluate(
        """async (graph) => {
        const kept = () => Object.fromEntries(app.graph.serialize().nodes.map((node) => [node.id, node.widgets_values ?? []]))
        await app.loadGraphData(graph)
        for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame)
        const { scale } = app.canvas.ds
        const once = kept()
        await app.loadGraphData(app.graph.serialize())
        const unknown = app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types))
        return [scale, unknown.map((node) => node.type), once, kept()]
    }""",
        graph,
    )
    # Text is 14 high. Below 8 pixels the classic renderer draws none; Nodes 2.0 does, and its older ones stretch the graph.
    assert 14 * scale >= (6 if in_vue(page) else 8)
    saved = {str(node["id"]): node.get("widgets_values", []) for node in graph["nodes"]}
    if frontend(page) < (1, 47):
        # PreviewAny of ComfyUI 0.26.0 and older keeps other things than that of 0.30.0, in which the workflows were saved.
        for entries in (saved, *kept):
            for node in nodes(graph, "PreviewAny"):
                entries.pop(str(node["id"]))
    assert unknown == [] and kept == [saved, saved]
    settle(page)
    assert overlapping(page) == []
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_saved_workflow_keeps_what_was_typed(page, server, renderer):
    node = add_node(page, "KleinKitScheduler")
    choose(page, node, "shift", "flux1")
    enter(page, node, "shift.base_shift", 0.3)
    expect(figure(page, "mu 1.15")).to_be_visible()
    file = server.base / "user" / "default" / "workflows" / f"{HTML} {renderer}.json"
    # ComfyUI 0.16's Nodes 2.0 looks for changes when the graph is clicked.
    page.mouse.click(1000, 700)
    page.keyboard.press("Control+s")
    page.get_by_role("dialog").get_by_role("textbox").fill(file.stem)
    with page.expect_response(lambda answer: "/userdata/workflows" in answer.url and answer.request.method == "POST"):
        page.keyboard.press("Enter")
    expect(page.get_by_text(file.stem).first).to_be_visible()
    saved = json.loads(file.read_text("utf-8"))
    file.unlink()
    assert saved["nodes"][0]["widgets_values"] == [20, 1024, 1024, 1, "ksampler", "flux1", 0.3, 1.15, "uniform", 0]


@pytest.mark.parametrize("kind", ["KleinKitCFG", "KleinKitLoader", "KleinKitReferences"])
def test_changes_beside_a_preview_are_undone_and_done_again(page, kind):
    """A node of another size than before, or of another order, would be a change too, and end what can be undone."""
    node, sampler = add_node(page, kind, 400), add_node(page, "KSampler")

    def look():
        """Click beside the nodes: the editor looks for changes, once they have their size."""
        page.evaluate("async () => { for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame) }")
        page.mouse.click(1350, 760)

    look()
    for steps in (7, 9):
        enter(page, sampler, "steps", steps)
        look()
    page.evaluate("app.canvas.canvas.focus()")
    for key, steps in ("z", 7), ("z", 20), ("y", 7), ("y", 9):
        page.keyboard.press(f"Control+{key}")
        page.wait_for_function(
            "([id, steps]) => app.graph.getNodeById(id)?.widgets.find(({ name }) => name === 'steps').value === steps",
            arg=[sampler, steps],
        )
        look()
        page.evaluate("app.canvas.canvas.focus()")
    page.evaluate("(id) => app.graph.getNodeById(id).setSize([420, 600])", node)
    page.evaluate("app.loadGraphData(app.graph.serialize())")
    settle(page)
    assert page.evaluate("(id) => [...app.graph.getNodeById(id).size]", node) == [420, 600]


@one_renderer
@pytest.mark.parametrize("name", [name for name in names() if name.startswith("FLUX 3 ")])
def test_a_workflow_of_flux3_says_which_comfyui_it_needs(page, server, name):
    graph = read(name)
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    outcome = run(page)
    status = api.get(server, f"/history/{outcome['prompt']}")[outcome["prompt"]]["status"]
    variant = "base" if "base" in nodes(graph, "KleinKitLoader")[0]["widgets_values"][0] else "distilled"
    assert f"FLUX 3 Image Klein 5.5B, {variant}: ComfyUI 0.41.0 or newer loads it" in str(status)


def test_a_run_of_a_prompt_and_a_file_that_are_html(page, server):
    graph = for_nano(read("02 Klein Text to Image (Distilled)"))
    [loader] = nodes(graph, "KleinKitLoader")
    put(loader, diffusion_model=FILE)
    for prompt in nodes(graph, "CLIPTextEncode"):
        put(prompt, text=HTML)
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    outcome = run(page)
    assert outcome["type"] == "execution_success"
    [picture] = [
        image
        for output in api.get(server, f"/history/{outcome['prompt']}")[outcome["prompt"]]["outputs"].values()
        for image in output.get("images", ())
    ]
    assert (server.base / picture["type"] / picture["subfolder"] / picture["filename"]).is_file()


def test_a_probe_draws_a_run_while_it_goes(page, server):
    api.forget(server)
    page.evaluate("(graph) => app.loadGraphData(graph)", for_nano(read("16 Klein Probe and Report")))
    shorten(page, 8)
    # From afar the editor draws no widgets.
    page.evaluate("""() => {
        app.canvas.ds.scale = 1
        app.canvas.centerOnNode(app.graph.nodes.find((node) => node.type === "KleinKitProbe"))
    }""")
    expect(figure(page, "No run yet.")).to_be_visible()
    page.evaluate("""() => {
        window.drawn = []
        const figure = document.querySelector('.kleinkit-figure[aria-label="No run yet."]')
        new MutationObserver(() => drawn.push(figure.getAttribute("aria-label"))).observe(figure, { attributes: true })
    }""")
    assert run(page)["type"] == "execution_success"
    page.wait_for_function("/step (\\d+) of \\1:/.test(drawn.at(-1))")
    steps = [int(re.search(r"step (\d+) of", text)[1]) for text in page.evaluate("drawn") if "step" in text]
    assert steps == sorted(steps) and len(set(steps)) > 2
    # Every symbol has words beside it and a sentence in its tooltip.
    legend = figure(page, "Noise left").locator(".legend > span")
    expect(legend).to_have_text(["negative scale α", "agreement cos(v_c, v_u)", "enlarged by ‖v‖/‖v_c‖"])
    assert all(tip.endswith(".") for tip in legend.evaluate_all("all => all.map((one) => one.title)"))
    expect(figure(page, "Noise left").locator(".head")).to_contain_text(
        re.compile("noise left σ .*; sizes: positive ‖v_c‖ .*, negative")
    )


@pytest.fixture
def languages(page):
    """Languages for the editor, which is in English again after the test, and its previews too."""
    yield "ja", "zh"
    switch(page, "en")
    expect(figure(page, "20 steps: 40 of 40 passes")).to_be_visible()


def test_texts_are_in_the_editors_language(page, languages, request):
    node = add_node(page, "KleinKitCFG")
    expect(figure(page, "20 steps: 40 of 40 passes")).to_be_visible()
    # What a script has added is gone when the editor draws the graph anew.
    page.evaluate("app.loadGraphData(app.graph.serialize())")
    for language in languages:
        switch(page, language)
        nodes, said = (
            json.loads((WORKFLOWS.parent / "locales" / language / f"{file}.json").read_text("utf-8"))
            for file in ("nodeDefs", "main")
        )
        inputs, said = nodes["KleinKitCFG"]["inputs"], said["KleinKit"]
        page.wait_for_function(
            "([id, label]) => app.graph.getNodeById(id)?.widgets[0].label === label", arg=[node, inputs["schedule"]["name"]]
        )
        label, shown, value = page.evaluate(
            """(id) => {
            const [widget] = app.graph.getNodeById(id).widgets
            return [widget.label, widget._displayValue, widget.value]
        }""",
            node,
        )
        choice = inputs["schedule"]["options"]["constant"]
        assert (label, value) == (inputs["schedule"]["name"], "constant")
        if in_vue(page):
            # Nodes 2.0 of ComfyUI 0.24.1 and older has neither labels for choices nor translated names for screen readers.
            newer = frontend(page) >= (1, 45)
            box = body(page, node).get_by_role("combobox", name=label if newer else "schedule", exact=True)
            expect(box).to_have_text(choice if newer else value)
        else:
            assert shown == choice
        passes = said["{steps} steps: {total} of {plain} passes"].format(steps=20, total=40, plain=40)
        expect(figure(page, passes)).to_contain_text(said["a model that is not distilled"])
        categories = page.evaluate(
            """() => Object.entries(LiteGraph.registered_node_types)
            .filter(([kind]) => kind.startsWith("KleinKit")).map(([, { category }]) => category)"""
        )
        # An older ComfyUI has no words for some that the newer ones have.
        english = {category for category in categories if category.isascii()}
        assert len(categories) == len(nodes) and (not english or frontend(page) < (1, 47))
        keep(page, f"{request.node.name}-{language}")


@one_renderer
def test_a_workflow_with_a_subgraph_is_queued_as_the_other_tests_do(page):
    """And a subgraph that is bypassed hands on its picture, as the note says."""
    graph = read("08 Klein Upscale in Two Passes")
    queued = """async ([graph, bypassed]) => {
        await app.loadGraphData(graph)
        for (const node of app.graph.nodes) if (node.isSubgraphNode?.() && bypassed) node.mode = 4
        return (await app.graphToPrompt()).output
    }"""
    prompt, second = (page.evaluate(queued, [graph, bypassed]) for bypassed in (False, True))
    ours = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in prompt.items()}
    assert ours == as_prompt(graph)
    [inside] = {number.partition(":")[0] for number in prompt if ":" in number}
    [enlarged, source] = (
        [key for key, one in prompt.items() if one["class_type"] == kind] for kind in ("ImageScaleToTotalPixels", "LoadImage")
    )
    assert prompt[enlarged[0]]["inputs"]["image"][0].startswith(f"{inside}:")
    assert second.keys() == {key for key in prompt if ":" not in key}
    assert second[enlarged[0]]["inputs"]["image"] == [source[0], 0]


@one_renderer
def test_a_workflow_brings_its_example_picture(page, server):
    graph = read("05 Klein Edit with Two Pictures")
    pictures = {
        node["widgets_values"][0]: server.base / "input" / node["widgets_values"][0] for node in nodes(graph, "LoadImage")
    }
    [first, second] = pictures.values()
    first.unlink()
    # One of the user's own under that name stays.
    second.write_bytes(first.with_name("kleinkit-circle-masked.png").read_bytes())
    kept = second.read_bytes()
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)
    assert first.read_bytes() == (EXAMPLES / first.name).read_bytes() and second.read_bytes() == kept
    listed = "app.graph.nodes.filter(({ type }) => type === 'LoadImage').map(({ widgets: [one] }) => one.options.values)"
    assert all(set(pictures) <= {*values} for values in page.evaluate(listed))
    page.wait_for_function("app.graph.nodes.find(({ type }) => type === 'LoadImage').imgs?.[0].naturalWidth === 512")
    for path in server.base.glob("input/kleinkit-*.png"):
        path.unlink()
    api.put_pictures(server.base)
