// What KleinKitScheduler, KleinKitDynamicShift and KleinKitCFG will do, drawn by the server's own functions.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addFigure } from "./figure.js"

const EXAMPLE = { steps: 20, width: 1024, height: 1024 }
const CELL = 16
const FARTHEST = 100
const MOST_DOTS = 100

const followers = new Set()
const heard = new WeakSet()
const loaders = new Map()
let planned

/** Have every preview look whether something has changed, once this change is whole. */
function changed() {
  clearTimeout(planned)
  planned = setTimeout(() => followers.forEach((look) => look()))
}

/** Look after every change of a node's widgets, also of those that a choice brings later. */
function listen(node) {
  for (const widget of node.widgets ?? []) {
    if (heard.has(widget)) continue
    heard.add(widget)
    const { callback } = widget
    widget.callback = function (...args) {
      const result = callback?.apply(this, args)
      listen(node)
      changed()
      return result
    }
  }
}

function numeric(value) {
  return typeof value === "number" ? value : undefined
}

function rounded(number, places = 3) {
  return String(Number(number.toFixed(places)))
}

// What the graph says

function linked(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false
}

function widgetValue(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value
}

function slot(node, name) {
  return node.inputs.findIndex((input) => input.name === name)
}

function source(node, name) {
  return node.getInputNode(slot(node, name))
}

/** The number that Klein Loader gives as its output `steps` or `cfg`: known when the server has told what the file is. */
function ofLoader(loader, output) {
  const names = ["diffusion_model", "variant"]
  const settings = Object.fromEntries(names.map((name) => [name, widgetValue(loader, name)]))
  const files = loader.widgets.find((widget) => widget.name === names[0]).options.values
  if (names.some((name) => linked(loader, name)) || !files.includes(settings.diffusion_model)) return undefined
  const text = JSON.stringify(settings)
  if (!loaders.has(text)) {
    loaders.set(text, {})
    ask("/kleinkit/loader", settings).then((answer) => {
      loaders.set(text, answer)
      changed()
    }, () => {})
  }
  return loaders.get(text)[output]
}

/** The number of an input: its widget's, or that of a primitive node or a loader at the other end of its link, else undefined. */
function known(node, name) {
  listen(node)
  if (!linked(node, name)) return numeric(widgetValue(node, name))
  const from = source(node, name)
  if (!from) return undefined
  listen(from)
  if (from.comfyClass !== "KleinKitLoader") return numeric(widgetValue(from, "value"))
  return ofLoader(from, from.outputs[node.getInputLink(slot(node, name)).origin_slot].name)
}

/** The numbers of `names` that are known, and the names of the others. */
function numbers(node, names) {
  const values = Object.fromEntries(names.map((name) => [name, known(node, name)]).filter(([, value]) => value !== undefined))
  return { values, unknown: names.filter((name) => !(name in values)) }
}

/** Nodes that a node leads to, the nearest first. */
function* behind(node) {
  const found = new Set([node])
  for (const one of found) {
    if (one !== node) yield one
    if (found.size > FARTHEST) return
    for (const slot of one.outputs?.keys() ?? []) {
      for (const next of one.getOutputNodes(slot) ?? []) found.add(next)
    }
  }
}

function leads(node, has) {
  for (const one of behind(node)) if (has(one)) return one
}

/** The size of the latent at an input, where the node that makes it has one. */
function latentSize(node, name) {
  const from = source(node, name)
  const { values, unknown } = numbers(from ?? {}, ["width", "height"])
  if (unknown.length) return undefined
  return { width: values.width - (values.width % CELL), height: values.height - (values.height % CELL) }
}

/** The values of the inputs of one of our nodes, as a prompt has them. */
function inputsOf(node) {
  const { required } = node.constructor.nodeData.input
  const ours = (node.widgets ?? []).filter(({ name }) => name.split(".")[0] in required)
  return Object.fromEntries(ours.map(({ name, value }) => [name, value]))
}

/** Settings of `/kleinkit/sigmas`, and what of them is not known. */
const sigmaSettings = {
  KleinKitScheduler(node) {
    const { values, unknown } = numbers(node, ["steps", "width", "height", "denoise"])
    const size = linked(node, "latent") ? latentSize(node, "latent") : {}
    const sizes = ["width", "height"].filter((name) => linked(node, "latent") ? !size : unknown.includes(name))
    const others = unknown.filter((name) => !EXAMPLE[name] || name === "steps")
    return { settings: { ...inputsOf(node), ...values, ...size }, unknown: [...others, ...sizes] }
  },
  KleinKitDynamicShift(node) {
    const sampler = leads(node, (one) => widgetValue(one, "steps") !== undefined)
    if (!sampler) return { settings: { ...EXAMPLE, ...inputsOf(node) }, unknown: Object.keys(EXAMPLE) }
    const { values, unknown } = numbers(sampler, ["steps", "denoise"])
    const size = linked(sampler, "latent_image") ? latentSize(sampler, "latent_image") : undefined
    const settings = { ...EXAMPLE, ...values, ...size, ...inputsOf(node) }
    return { settings, unknown: [...unknown, ...(size ? [] : ["width", "height"])] }
  },
}

/** Settings of `/kleinkit/guidance`, and what of them is not known. */
function guidanceSettings(node) {
  const sampler = leads(node, (one) => widgetValue(one, "cfg") !== undefined)
  const settings = { ...inputsOf(node), sigmas: { ...EXAMPLE } }
  if (!sampler) return { settings, unknown: ["steps", "cfg"] }
  const { values, unknown } = numbers(sampler, ["cfg"])
  const taker = widgetValue(sampler, "steps") === undefined ? leads(node, (one) => linked(one, "sigmas")) : sampler
  const maker = taker && linked(taker, "sigmas") ? source(taker, "sigmas") : taker
  const ofMaker = sigmaSettings[maker?.comfyClass]?.(maker)
  const made = ofMaker ?? { settings: numbers(maker ?? {}, ["steps"]).values, unknown: numbers(maker ?? {}, ["steps"]).unknown }
  settings.sigmas = { ...settings.sigmas, ...made.settings }
  return { settings: { ...settings, ...values }, unknown: [...unknown, ...made.unknown.filter((name) => name === "steps")] }
}

// What is drawn

function assumed(unknown, settings) {
  const texts = { steps: `${settings.steps} steps`, cfg: `cfg ${settings.cfg}`, denoise: `denoise ${settings.denoise}` }
  const size = unknown.includes("width") || unknown.includes("height") ? [`${settings.width}×${settings.height}`] : []
  const parts = [...Object.keys(texts).filter((name) => unknown.includes(name)).map((name) => texts[name]), ...size]
  return parts.length ? `\nexample: ${parts.join(", ")}` : ""
}

function sigmaFigure(answer, { settings, unknown }) {
  const { sigmas, mu, start, static_sigmas: staticSigmas, static_mu: staticMu } = answer
  const steps = Math.max(sigmas.length - 1, 0)
  const note = assumed(unknown, settings)
  const what = `${steps} steps, mu ${rounded(mu)}, start σ ${rounded(start, 4)}`
  if (!steps) return { head: `denoise 0: no steps${note}`, label: "No sigmas: denoise is 0." }
  const points = (values) => values.map((sigma, step) => [step, sigma])
  const half = (values) => rounded(values[Math.ceil(steps / 2)])
  return {
    head: what + note,
    label: `Sigmas of the run: ${what}, ${half(sigmas)} half way.${note} With the static shift, mu ${staticMu}: ${half(staticSigmas)}.`,
    x: [0, steps],
    y: [0, 1],
    ends: ["0", "step", String(steps)],
    series: [
      { look: "faint", name: `static shift, mu ${staticMu}`, points: points(staticSigmas) },
      { look: "line", name: "sigma", points: points(sigmas) },
      { look: "dots", points: steps > MOST_DOTS ? [] : points(sigmas) },
    ],
  }
}

function guidanceFigure({ cfg, passes, total, plain }, { settings, unknown }) {
  const steps = cfg.length
  const sampler = { steps, cfg: settings.cfg ?? 5 }
  const note = assumed(unknown, sampler)
  if (!steps) return { head: `denoise 0: no steps${note}`, label: "No guidance: denoise is 0." }
  const saved = Math.round((1 - total / plain) * 100)
  const share = saved ? `, ${Math.abs(saved)} % ${saved < 0 ? "more" : "saved"}` : ""
  const what = `${steps} steps: ${total} of ${plain} passes${share}`
  const bars = (count) => cfg.map((value, step) => [step + 1, passes[step] === count ? value : null])
  return {
    head: what + note,
    label: `${what}.${note} The effective cfg goes from ${rounded(cfg[0])} to ${rounded(cfg[steps - 1])}, at most ${rounded(Math.max(...cfg))}.`,
    x: [0.5, steps + 0.5],
    y: [0, Math.max(1, ...cfg)],
    ends: ["1", "step", String(steps)],
    series: [
      { look: "bars", name: "cfg, two passes", points: bars(2) },
      { look: "bars faint", name: "one pass", points: bars(1) },
    ],
  }
}

const PREVIEWS = {
  KleinKitScheduler: ["/kleinkit/sigmas", sigmaSettings.KleinKitScheduler, sigmaFigure],
  KleinKitDynamicShift: ["/kleinkit/sigmas", sigmaSettings.KleinKitDynamicShift, sigmaFigure],
  KleinKitCFG: ["/kleinkit/guidance", guidanceSettings, guidanceFigure],
}

// When it is drawn

async function ask(path, settings) {
  const body = JSON.stringify(settings)
  const answer = await api.fetchApi(path, { method: "POST", headers: { "Content-Type": "application/json" }, body })
  const content = await answer.json()
  if (!answer.ok) throw new Error(content.error)
  return content
}

/** Draw the preview of a node; returns the function that looks whether something has changed, and draws it anew. */
function preview(node, [path, settingsOf, figure]) {
  const show = addFigure(node, "preview", `KLEINKIT_${path.split("/").pop().toUpperCase()}`)
  let asked, busy

  async function look(again) {
    // A node that has left its graph, as into a subgraph, has no neighbours to ask.
    if (!node.graph) return
    const wanted = settingsOf(node)
    const text = JSON.stringify(wanted)
    // One question at a time: what changes meanwhile is asked at once afterwards.
    if (busy || (text === asked && !again)) return
    busy = true
    asked = text
    try {
      show(figure(await ask(path, wanted.settings), wanted))
    } catch (error) {
      const reason = error instanceof TypeError || error instanceof SyntaxError ? "The server does not answer." : error.message
      show({ head: `–\n${reason}`, label: `No preview. ${reason}` })
    }
    busy = false
    look()
  }

  show({ head: "…", label: "The preview is on its way." })
  return look
}

function after(object, method, run) {
  const before = object[method]
  object[method] = function (...args) {
    const result = before?.apply(this, args)
    run()
    return result
  }
}

app.registerExtension({
  name: "KleinKit.preview",
  setup() {
    api.addEventListener("graphChanged", changed)
    api.addEventListener("reconnected", () => {
      loaders.clear()
      followers.forEach((look) => look(true))
    })
  },
  nodeCreated(node) {
    if (!(node.comfyClass in PREVIEWS)) return
    const look = preview(node, PREVIEWS[node.comfyClass])
    const again = () => {
      listen(node)
      changed()
    }
    after(node, "onAdded", () => followers.add(look))
    after(node, "onRemoved", () => followers.delete(look))
    for (const event of ["onAdded", "onConfigure", "onConnectionsChange"]) after(node, event, again)
  },
})
