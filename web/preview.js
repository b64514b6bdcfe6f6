// What our nodes will do, drawn by the server's own functions before anything runs.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addFigure } from "./figure.js"
import { behind, chainTo, has, linked, nodeOf, off, origin, slot, source, widgetOf } from "./graph.js"
import { forgetSizes, sizeOf } from "./pictures.js"
import { say } from "./words.js"

const ASSUMED = { steps: 20, width: 1024, height: 1024 }
const ASSUMED_CFG = 5
const CELL = 16
// What of a run's sigmas a plan of guidance goes by.
const OF_RUN = ["steps", "start_at_step", "end_at_step", "sigmas", "scheduler"]
// What of it counts only where a rule goes by sigma.
const OF_SIGMAS = ["sigmas", "scheduler"]
// ComfyUI's own shift of FLUX.2.
const STATIC = { shift: "fixed", "shift.mu": 2.02 }
const DYNAMIC_SHIFT = "KleinKitDynamicShift"
// The one of ComfyUI's schedulers that makes the sigmas which are drawn.
const DRAWN = "simple"
const MOST_DOTS = 100
const MOST_PROMPTS = 100
const MOST_LABELS = 12
// Nodes between a loader and a sampler that run no pass and change no cfg.
const PASSING = /^(Lora|ModelSampling|TorchCompile|KleinKit(DynamicShift|Probe)$)/
// The one that stands for others.
const PRESET = "KleinKitGuidance"
// The one that puts a guard on a distilled model.
const LOADER = "KleinKitLoader"
const REFERENCES = "KleinKitReferences"
// Guiders whose passes are those of the plan, and the one of them without a negative.
const NO_NEGATIVE = "BasicGuider"
const GUIDERS = ["CFGGuider", NO_NEGATIVE]
// Nodes after which a prompt is more than one pass, or none in some steps.
const OTHER_PASSES = /Combine|TimestepRange/
// Nodes whose picture is a file of the server's.
const OF_FILES = ["LoadImage", "LoadImageOutput"]

const followers = new Set()
const heard = new WeakSet()
const answers = new Map()
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

/** The value of an input: its widget's, or that of a primitive node or a loader at the other end of its link, else undefined. */
function known(node, name) {
  listen(node)
  const index = slot(node, name)
  const from = index < 0 ? { node, widget: widgetOf(node, name) } : origin(node, index)
  if (!from) return undefined
  listen(from.node)
  if (from.widget) return from.widget.value
  // While a graph is loaded, a node may not have its outputs yet.
  const output = from.node.outputs[from.output]?.name
  if (from.node.comfyClass === LOADER) return ofLoader(from.node)?.[output]
  if (from.node.comfyClass === REFERENCES) return ofReferences(from.node)?.made?.[output]
  return undefined
}

function loaderSettings(loader) {
  const names = ["diffusion_model", "variant"]
  return Object.fromEntries(names.map((name) => [name, known(loader, name)]))
}

/** What the server knows of a loader's model: undefined until it has answered, and where it cannot. */
function ofLoader(loader) {
  const settings = loaderSettings(loader)
  const files = widgetOf(loader, "diffusion_model").options.values
  if (settings.variant === undefined || !files.includes(settings.diffusion_model)) return undefined
  return asked("/kleinkit/loader", settings).answer
}

/** What the server makes of the pictures of a Klein References: undefined as `ofLoader`. */
function ofReferences(node) {
  const { settings, missing, says } = referencesSettings(node)
  return says || missing.length ? undefined : asked("/kleinkit/references", settings).answer
}

/** A question that many previews share; one that failed is asked again at the next change. */
function asked(path, settings) {
  const text = path + JSON.stringify(settings)
  if (!answers.has(text)) {
    const entry = {}
    answers.set(text, entry)
    entry.promise = ask(path, settings).then((answer) => {
      entry.answer = answer
      changed()
      return answer
    })
    entry.promise.catch(() => answers.delete(text))
  }
  return answers.get(text)
}

/** The numbers of `names` that are known, and the names of the others. */
function numbers(node, names) {
  const all = names.map((name) => [name, numeric(node && known(node, name))])
  const values = Object.fromEntries(all.filter(([, value]) => value !== undefined))
  return { values, unknown: names.filter((name) => !(name in values)) }
}

function leads(node, wanted) {
  for (const one of behind(node)) if (wanted(one)) return one
}

/** The size of the latent at an input, where the node that makes it has one. */
function latentSize(node, name) {
  const maker = source(node, name)
  if (maker?.comfyClass === REFERENCES) {
    const { width, height } = ofReferences(maker)?.made ?? {}
    return width && { width, height }
  }
  const { values, unknown } = numbers(maker, ["width", "height"])
  // Of a latent that is scaled, 0 is what fits the other side.
  if (unknown.length || Math.min(values.width, values.height) < CELL) return undefined
  return { width: values.width - (values.width % CELL), height: values.height - (values.height % CELL) }
}

/** The values of the inputs of one of our nodes, as a prompt has them, and the names of those that are not known. */
function inputsOf(node) {
  const { required, optional } = node.constructor.nodeData.input
  const inputs = { ...required, ...optional }
  const ours = (node.widgets ?? []).map(({ name }) => name).filter((name) => name.split(".")[0] in inputs)
  const all = ours.map((name) => [name, known(node, name)])
  const values = Object.fromEntries(all.filter(([, value]) => value !== undefined))
  return { values, unknown: ours.filter((name) => !(name in values)) }
}

/** What the server knows of the model that a chain of nodes begins with: undefined where no loader of ours says it. */
function ofLoaderIn([loader]) {
  if (loader?.comfyClass !== LOADER) return undefined
  listen(loader)
  return ofLoader(loader)
}

/** The scheduler of a sampler, where its sigmas are not those that are drawn; "?" where it is not known. */
function otherScheduler(sampler) {
  if (!sampler || !widgetOf(sampler, "scheduler")) return undefined
  const scheduler = known(sampler, "scheduler") ?? "?"
  return scheduler === DRAWN ? undefined : scheduler
}

/** Settings of `/kleinkit/sigmas`, what of them is not known, whether a latent gives the size, and `otherScheduler`. */
const sigmaSettings = {
  KleinKitScheduler(node) {
    const { values, unknown } = inputsOf(node)
    const latent = linked(node, "latent")
    const size = latent ? latentSize(node, "latent") : {}
    const missing = latent ? unknown.filter((name) => name !== "width" && name !== "height") : unknown
    if (!size) missing.push("width", "height")
    const { width, height } = latent ? { ...ASSUMED, ...size } : { ...ASSUMED, ...values }
    if (values.shift === "auto" && linked(node, "model")) {
      const shift = ofLoaderIn(chainTo(node))?.shift
      if (shift) values.shift = shift
      else missing.push("shift")
    }
    return { settings: { ...ASSUMED, ...values, width, height }, unknown: missing, latent }
  },
  KleinKitDynamicShift(node) {
    const { values, unknown } = inputsOf(node)
    const sampler = leads(node, (one) => widgetOf(one, "steps"))
    // KSamplerAdvanced has no denoise.
    const run = numbers(sampler, ["steps", ...(sampler && widgetOf(sampler, "denoise") ? ["denoise"] : [])])
    const taker = leads(node, (one) => slot(one, "latent_image") >= 0)
    const size = taker && latentSize(taker, "latent_image")
    const missing = [...unknown, ...run.unknown]
    return {
      settings: { ...ASSUMED, ...run.values, ...size, ...values },
      unknown: size ? missing : [...missing, "width", "height"],
      scheduler: otherScheduler(sampler),
    }
  },
}

/** The sizes `[width, height]` of the pictures that an input gets, null where one is not known; none of a node that is off. */
function pictureSizes(node, index) {
  const from = origin(node, index)
  if (from === null) return []
  const maker = from?.node
  if (OF_FILES.includes(maker?.comfyClass)) {
    const name = known(maker, "image")
    return [typeof name === "string" ? sizeOf(name, changed) : null]
  }
  if (maker?.comfyClass !== "EmptyImage") return [null]
  const { values, unknown } = numbers(maker, ["width", "height", "batch_size"])
  return unknown.length ? [null] : Array(values.batch_size).fill([values.width, values.height])
}

/** Settings of `/kleinkit/references`, what of them is not known, and what is said instead of an answer. */
function referencesSettings(node) {
  const { values, unknown } = inputsOf(node)
  const images = [...(node.inputs ?? []).entries()].filter(([, { name, link }]) => name.startsWith("images.") && link != null)
  const pictures = images.flatMap(([index]) => pictureSizes(node, index))
  const says = pictures.length ? undefined : say("Connect a picture to see what becomes of it.")
  const [positive, negative, ...size] = (node.outputs ?? []).map(({ links }) => links?.length > 0)
  // The prompts go on, but the latent comes from another node, such as that of a padded picture.
  const apart = (positive || negative) && !size.some(Boolean)
  return { settings: { ...values, pictures }, missing: unknown, says, apart }
}

/** What takes the model that a node hands on, the nodes that this model passes before, and how many samplers take it. */
function wayOf(node) {
  // A scheduler looks at a model, and samples nothing.
  const samples = (one) => has(one.inputs, "MODEL") && !has(one.outputs, "SIGMAS")
  const takers = [...behind(node)].filter((one) => samples(one) && chainTo(one).includes(node))
  const ends = takers.filter((one) => !has(one.outputs, "MODEL"))
  const samplers = ends.filter((one) => has(one.outputs, "LATENT") || has(one.outputs, "GUIDER"))
  const taker = samplers[0] ?? ends[0]
  if (taker) return { taker, chain: chainTo(taker), samplers: samplers.length }
  const last = takers.at(-1) ?? node
  return { chain: [...chainTo(last), last], samplers: 0 }
}

/** The titles of the nodes that change how many passes the prompts of a node are. */
function promptsOtherThanOne(node) {
  const found = new Set([node])
  for (const one of found) {
    for (const [index, { type }] of one?.inputs?.entries() ?? []) {
      if (type === "CONDITIONING" && found.size < MOST_PROMPTS) found.add(origin(one, index)?.node)
    }
  }
  return [...found].filter((one) => OTHER_PASSES.test(one?.comfyClass)).map(({ title }) => title)
}

/** The steps that a sampler makes of those that it has: KSamplerAdvanced may begin later and end earlier. */
function stepsOf(node) {
  const { values, unknown } = numbers(node, ["steps"])
  if (!node || unknown.length || !widgetOf(node, "start_at_step")) return { values, unknown }
  const part = numbers(node, ["start_at_step", "end_at_step"])
  const { start_at_step: start = 0, end_at_step: end = values.steps } = part.values
  const steps = Math.max(Math.min(end, values.steps) - start, 0)
  // The sigmas of a part are none of a whole run.
  const whole = steps === values.steps ? [] : ["sigmas"]
  return { values: steps ? { steps } : { denoise: 0 }, unknown: [...part.unknown, ...whole] }
}

/** Settings of `/kleinkit/sigmas` for a node of ComfyUI's behind a chain of nodes, and what of them is not known. */
function sigmasOf(maker, chain) {
  const { values, unknown } = stepsOf(maker)
  if (!maker || unknown.includes("steps")) return { settings: values, unknown }
  if (maker.comfyClass === "Flux2Scheduler") {
    return { settings: { ...numbers(maker, ["width", "height"]).values, ...values }, unknown }
  }
  const shift = chain.findLast((one) => one?.comfyClass === DYNAMIC_SHIFT)
  const ours = shift && sigmaSettings[DYNAMIC_SHIFT](shift)
  const ofFamily = ofLoaderIn(chain)?.shift === "flux3" ? { shift: "flux3" } : STATIC
  const denoise = widgetOf(maker, "denoise") ? numbers(maker, ["denoise"]).values : {}
  const patched = !shift && chain.some((one) => one?.comfyClass?.startsWith("ModelSampling"))
  const told = widgetOf(maker, "scheduler") && !otherScheduler(maker) && !patched && !ours?.unknown.includes("width")
  const settings = { ...(ours?.settings ?? ofFamily), ...denoise, ...values }
  return { settings, unknown: told ? unknown : [...unknown, "scheduler"] }
}

/** The name of the sampler's function, or the title of the node that makes the sampler. */
function samplerOf(node) {
  const maker = node && linked(node, "sampler") ? source(node, "sampler") : node
  if (!maker) return {}
  const name = widgetOf(maker, "sampler_name") && known(maker, "sampler_name")
  return typeof name === "string" ? { sampler: name } : { other: maker === node ? undefined : maker.title }
}

/** Settings of `/kleinkit/guidance`, what of them is not known, and what else there is to say. */
function guidanceSettings(node) {
  const { taker, chain, samplers } = wayOf(node)
  const own = inputsOf(node)
  const unknown = [...own.unknown]
  const isPreset = node.comfyClass === PRESET
  const settings = { ...(isPreset ? {} : own.values), rules: [], distilled: false, sigmas: { ...ASSUMED } }
  const others = []
  let replaced = false
  for (const one of chain) {
    const place = chain.indexOf(one) - chain.indexOf(node)
    if (!one) unknown.push("model")
    else if (one.comfyClass === LOADER) {
      listen(one)
      const answer = ofLoader(one)
      if (!answer) unknown.push("model")
      settings.distilled = Boolean(answer?.distilled) && known(one, "distilled_cfg") !== "allow"
    } else if (one.comfyClass?.startsWith("KleinKit") && !PASSING.test(one.comfyClass)) {
      // Of two of a kind the later counts; presets add up.
      const same = one.comfyClass === node.comfyClass && !isPreset
      if (same && place <= 0) continue
      replaced ||= same
      const inputs = inputsOf(one)
      if (linked(one, "weak_model")) inputs.values.weak_model = true
      settings.rules.push({ node: one.comfyClass, inputs: inputs.values })
      unknown.push(...inputs.unknown.map((name) => `${name} (${one.title})`))
    } else if (has(one.inputs, "MODEL") && !PASSING.test(one.comfyClass)) others.push(one.title)
  }
  const sampler = taker && widgetOf(taker, "cfg") ? taker : leads(node, (one) => widgetOf(one, "cfg"))
  const guider = has(taker?.outputs, "GUIDER") ? taker.comfyClass : undefined
  if (guider && !GUIDERS.includes(guider)) others.push(taker.title)
  const scale = guider === NO_NEGATIVE ? { values: { cfg: 1 }, unknown: [] } : numbers(sampler, ["cfg"])
  const sampling = sampler ?? taker ?? node
  const sigmas = widgetOf(sampling, "steps") && sampling !== node ? sampling : leads(sampling, (one) => linked(one, "sigmas"))
  const maker = sigmas && linked(sigmas, "sigmas") ? source(sigmas, "sigmas") : sigmas
  const { sampler: name, other } = samplerOf(sigmas)
  if (name) settings.sampler = name
  others.push(...promptsOtherThanOne(taker), ...(other ? [other] : []))
  const made = sigmaSettings[maker?.comfyClass]?.(maker) ?? sigmasOf(maker, chain)
  Object.assign(settings.sigmas, made.settings)
  unknown.push(...scale.unknown, ...made.unknown.filter((name) => OF_RUN.includes(name)))
  const withoutNegative = guider === NO_NEGATIVE && taker.title
  const oneOf = samplers > 1 && { node: taker.title, count: samplers }
  Object.assign(settings, scale.values)
  return { settings, unknown, others, withoutNegative, replaced: replaced && node.title, isPreset, oneOf }
}

// What is drawn

function assumed(unknown, settings) {
  const texts = {
    model: say("a model that is not distilled"),
    steps: say("{steps} steps", settings),
    cfg: `cfg ${settings.cfg ?? ASSUMED_CFG}`,
    denoise: `denoise ${settings.denoise ?? 1}`,
    shift: "shift flux2",
    sigmas: say("the sigmas of a whole run"),
    scheduler: `scheduler ${DRAWN}`,
  }
  const size = unknown.includes("width") || unknown.includes("height") ? [`${settings.width}×${settings.height}`] : []
  const others = unknown.filter((name) => !(name in texts) && name !== "width" && name !== "height")
  const parts = [...Object.keys(texts).filter((name) => unknown.includes(name)).map((name) => texts[name]), ...size, ...others]
  return parts.length ? [say("not known, assumed: {parts}", { parts: [...new Set(parts)].join(", ") })] : []
}

function lines(...texts) {
  return texts.flat(Infinity).filter(Boolean).join("\n")
}

/** The label of a figure: its head in one line, and what is seen below. */
function spoken(head, ...more) {
  return [...head.split("\n"), ...more].map((text) => (/[.。]$/.test(text) ? text : `${text}.`)).join(" ")
}

function sigmaFigure(answer, { settings, unknown, latent, scheduler }) {
  const { sigmas, mu, start, tokens, static_sigmas: staticSigmas, static_mu: staticMu } = answer
  const steps = Math.max(sigmas.length - 1, 0)
  const size = { width: settings.width, height: settings.height, tokens }
  const notes = [
    // The others are among what is assumed.
    !unknown.includes("width") && say("for {width}×{height}, {tokens} tokens", size),
    latent && say("The latent's size counts; width and height are not used."),
    scheduler && say("drawn for scheduler simple, not for {scheduler}", { scheduler }),
    assumed(unknown, settings),
  ]
  if (!steps) {
    const head = lines(say("denoise 0: no steps"), notes)
    return { head, label: spoken(head) }
  }
  const head = lines(say("{steps} steps, mu {mu}, start σ {start}", { steps, mu: rounded(mu), start: rounded(start, 4) }), notes)
  const points = (values) => values.map((sigma, step) => [step, sigma])
  const half = (values) => rounded(values[Math.ceil(steps / 2)])
  const fixed = say("static shift, mu {mu}", { mu: staticMu })
  return {
    head,
    label: spoken(head, say("Half way: {half}; {fixed}: {other}", { half: half(sigmas), fixed, other: half(staticSigmas) })),
    x: [0, steps],
    y: [0, 1],
    ends: ["0", say("step"), String(steps)],
    series: [
      { look: "faint", name: fixed, points: points(staticSigmas) },
      { look: "line", name: say("sigma"), points: points(sigmas) },
      { look: "dots", points: steps > MOST_DOTS ? [] : points(sigmas) },
    ],
  }
}

function titleOf(kind) {
  return LiteGraph.registered_node_types[kind]?.title ?? kind
}

function guidanceFigure(answer, { settings, unknown, others, withoutNegative, replaced, isPreset, oneOf }) {
  const { cfg, passes, total, plain, ignored, negative, decides, rules, once, by_sigma: bySigma } = answer
  const steps = cfg.length
  const uncounted = [...others, !once && settings.sampler, negative && withoutNegative].filter(Boolean)
  const notes = [
    isPreset && (rules.length ? say("does: {nodes}", { nodes: rules.map(titleOf).join(", ") }) : say("no guidance nodes")),
    ignored && negative && say("distilled model: cfg {cfg} counts as 1", { cfg: rounded(ignored) }),
    ignored && !negative && say("distilled model: cfg {cfg} counts as 1, and the negative prompt has no effect", { cfg: rounded(ignored) }),
    decides.length && say("fewer once {nodes} decides", { nodes: decides.map(titleOf).join(", ") }),
    oneOf && say("for {node}, the nearest of {count} samplers", oneOf),
    replaced && say("A later {node} takes the place of this one.", { node: replaced }),
    uncounted.length && say("not counted: {nodes}", { nodes: [...new Set(uncounted)].join(", ") }),
    assumed(bySigma ? unknown : unknown.filter((name) => !OF_SIGMAS.includes(name)), { ...settings, steps }),
  ]
  if (!steps) {
    const head = lines(say("denoise 0: no steps"), notes)
    return { head, label: spoken(head) }
  }
  const share = Math.round((1 - total / plain) * 100)
  const counts = { steps, total, plain, share: Math.abs(share) }
  const what =
    share < 0 ? say("{steps} steps: {total} of {plain} passes, {share} % more", counts)
    : share > 0 ? say("{steps} steps: {total} of {plain} passes, {share} % saved", counts)
    : say("{steps} steps: {total} of {plain} passes", counts)
  const head = lines(what, notes)
  const bars = (wanted) => cfg.map((value, step) => [step + 1, wanted(passes[step]) ? value : null])
  const effective = { first: rounded(cfg[0]), last: rounded(cfg[steps - 1]), most: rounded(Math.max(...cfg)) }
  return {
    head,
    label: spoken(head, say("The effective cfg goes from {first} to {last}, at most {most}", effective)),
    x: [0.5, steps + 0.5],
    y: [0, Math.max(1, ...cfg)],
    ends: ["1", say("step"), String(steps)],
    series: [
      { look: "bars second", name: say("cfg, three passes or more"), points: bars((count) => count > 2) },
      { look: "bars", name: say("cfg, two passes"), points: bars((count) => count === 2) },
      { look: "bars faint", name: say("one pass"), points: bars((count) => count === 1) },
    ],
  }
}

function loaderFigure({ steps, cfg, distilled, shift }, { allow }) {
  const values = { steps, cfg }
  if (!distilled) return plainly(say("base: {steps} steps, cfg {cfg}", values))
  return plainly(
    allow ? say("distilled: {steps} steps, cfg {cfg}. `distilled_cfg` allows a higher one.", values)
    : shift === "flux2" ? say("distilled: {steps} steps, cfg {cfg}. A higher cfg has no effect, and the negative prompt only with Klein NAG.", values)
    : say("distilled: {steps} steps, cfg {cfg}. A higher cfg and the negative prompt have no effect.", values),
  )
}

function plainly(head) {
  return { head, label: spoken(head) }
}

/** `[7, 8, 9, 12]` as "7–9, 12". */
function ranges(indices) {
  const found = []
  for (const index of indices) {
    if (found.at(-1)?.[1] === index - 1) found.at(-1)[1] = index
    else found.push([index, index])
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ")
}

function layersFigure({ double_layers: double, single_layers: single }, { blurs }) {
  if (!double.length && !single.length) return plainly(blurs ? say("No layer is blurred.") : say("No layer is skipped."))
  const parts = { double: ranges(double), single: ranges(single) }
  const kinds = [double.length && say("double {double}", parts), single.length && say("single {single}", parts)]
  const layers = { layers: kinds.filter(Boolean).join("; ") }
  return plainly(blurs ? say("blurs {layers}", layers) : say("skips {layers}", layers))
}

function sweepFigure({ labels }, { done }) {
  const shown = labels.length > MOST_LABELS ? [...labels.slice(0, MOST_LABELS), "…"] : labels
  const values = { count: labels.length, done, values: shown.join(", ") }
  return plainly(done && done <= labels.length ? say("{done} of {count} runs are done: {values}", values) : say("{count} runs: {values}", values))
}

/** 16384 as "16 384". */
function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, "\u202f")
}

function referencesFigure({ pictures, made, references, total }, { apart }) {
  const words = ({ width, height, tokens }) => ({ width, height, tokens: grouped(tokens) })
  const each = pictures.map((picture, index) =>
    picture
      ? say("picture {number}: {width}×{height}, {tokens} tokens", { number: index + 1, ...words(picture) })
      : say("picture {number}: not known before the run", { number: index + 1 }),
  )
  const shares = { references: grouped(references), total: grouped(total) }
  return plainly(
    lines(
      !apart && total && say("{references} of {total} tokens are references", shares),
      !apart && made && say("makes {width}×{height}, {tokens} tokens", words(made)),
      each,
    ),
  )
}

/** The names of the settings that the graph does not tell. */
function missing(settings) {
  return Object.keys(settings).filter((name) => settings[name] === undefined)
}

/** What shows which layers two texts mean. */
const LAYERS = {
  path: "/kleinkit/layers",
  settingsOf(node) {
    const { double_layers, single_layers } = inputsOf(node).values
    const typed = linked(node, "weak_model") ? { double_layers: "", single_layers: "" } : { double_layers, single_layers }
    const found = ofLoaderIn(chainTo(node))
    const counts = found && { double_layers: found.double_layers, single_layers: found.single_layers }
    return { settings: { ...typed, counts }, blurs: node.comfyClass === "KleinKitSEG", missing: missing(typed) }
  },
  figure: layersFigure,
  lines: 3,
}

/** Of each node the route, the settings for it, what is drawn, and the lines of a figure that is text alone. */
const PREVIEWS = {
  KleinKitScheduler: { path: "/kleinkit/sigmas", settingsOf: sigmaSettings.KleinKitScheduler, figure: sigmaFigure },
  KleinKitDynamicShift: { path: "/kleinkit/sigmas", settingsOf: sigmaSettings.KleinKitDynamicShift, figure: sigmaFigure },
  KleinKitCFG: { path: "/kleinkit/guidance", settingsOf: guidanceSettings, figure: guidanceFigure },
  KleinKitGuidance: { path: "/kleinkit/guidance", settingsOf: guidanceSettings, figure: guidanceFigure },
  KleinKitLoader: {
    path: "/kleinkit/loader",
    settingsOf(node) {
      const settings = loaderSettings(node)
      return { settings, allow: known(node, "distilled_cfg") === "allow", missing: missing(settings) }
    },
    figure: loaderFigure,
    lines: 3,
  },
  KleinKitReferences: { path: "/kleinkit/references", settingsOf: referencesSettings, figure: referencesFigure, lines: 5 },
  KleinKitSkipLayerGuidance: LAYERS,
  KleinKitSEG: LAYERS,
  KleinKitAutoGuidance: LAYERS,
  KleinKitSweep: {
    path: "/kleinkit/sweep",
    settingsOf(node) {
      const settings = { values: known(node, "values") }
      return { settings, done: runsOf(node), missing: missing(settings) }
    },
    figure: sweepFigure,
    lines: 3,
  },
}

// What other nodes' previews go by too.
const SHARED = ["/kleinkit/loader", "/kleinkit/references"]

// When it is drawn

/** What the server refuses, or that it does not answer: an error whose message is for the reader. */
class Refused extends Error {}

async function ask(path, settings) {
  const body = JSON.stringify(settings)
  let answer, content
  try {
    answer = await api.fetchApi(path, { method: "POST", headers: { "Content-Type": "application/json" }, body })
    content = await answer.json()
  } catch {
    throw new Refused(say("The server does not answer."))
  }
  if (!answer.ok) throw new Refused(content.error)
  return content
}

const OFF = {
  muted: () => say("muted: this node does not run"),
  bypassed: () => say("bypassed: this node changes nothing"),
}

/** Draw the preview of a node; returns the function that looks whether something has changed, and draws it anew. */
function preview(node, { path, settingsOf, figure, lines: height }) {
  const show = addFigure(node, "preview", `KLEINKIT_${path.split("/").pop().toUpperCase()}`, height)
  const ofModel = path === "/kleinkit/loader"
  let drawn, busy, anew

  function fail(error) {
    if (!(error instanceof Refused)) console.error(error)
    const reason = error instanceof Refused ? error.message : say("This preview has a fault: {reason}", { reason: error.message })
    show({ head: height ? reason : `–\n${reason}`, label: say("No preview. {reason}", { reason }) })
  }

  async function draw(wanted) {
    if (wanted.off) return show({ ...plainly(wanted.off), off: true })
    if (wanted.missing?.length) return show(plainly(say("not known before the run: {parts}", { parts: wanted.missing.join(", ") })))
    if (wanted.says) return show(plainly(wanted.says))
    show(figure(SHARED.includes(path) ? await asked(path, wanted.settings).promise : await ask(path, wanted.settings), wanted))
  }

  async function look(again) {
    anew ||= again
    if (busy) return
    busy = true
    let failed
    try {
      // A node that has left its graph, as into a subgraph or for another workflow, has no neighbours to ask.
      while (node.graph?.getNodeById(node.id) === node) {
        const without = off(node)
        const wanted = without ? { off: OFF[without]() } : settingsOf(node)
        const text = JSON.stringify(wanted)
        // One question at a time: what changes meanwhile is asked at once afterwards.
        if (text === drawn && !anew) break
        drawn = text
        anew = failed = false
        await draw(wanted).catch((error) => {
          failed = true
          fail(error)
        })
      }
    } catch (error) {
      fail(error)
    }
    // A model's file can change without a change of its name.
    if (failed && ofModel) drawn = undefined
    busy = false
  }

  show({ head: "…", label: say("The preview is on its way.") })
  return look
}

// How far a sweep is

const runs = new WeakMap()
const sweeps = new Set()

/** How many runs of a sweep are done. */
function runsOf(sweep) {
  return runs.get(sweep)?.done ?? 0
}

/** Count the times that the first node behind a sweep which tells of its progress, its sampler, comes to its end. */
function progressed({ detail: { prompt_id: prompt, node, value, max } }) {
  for (const sweep of sweeps) {
    let run = runs.get(sweep)
    if (run?.prompt !== prompt) {
      if (![...behind(sweep)].includes(nodeOf(node))) continue
      runs.set(sweep, (run = { prompt, node, done: 0 }))
    }
    if (run.node !== node || value !== max) continue
    run.done += 1
    changed()
  }
}

/** Forget what the server has said, and have every preview ask again. */
function renew() {
  answers.clear()
  forgetSizes()
  followers.forEach((look) => look(true))
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
    api.addEventListener("progress", progressed)
    api.addEventListener("reconnected", renew)
  },
  // The list of files is read anew: R, or "Refresh Node Definitions".
  refreshComboInNodes: renew,
  nodeCreated(node) {
    if (!(node.comfyClass in PREVIEWS)) return
    const look = preview(node, PREVIEWS[node.comfyClass])
    const again = () => {
      listen(node)
      changed()
    }
    const sweep = node.comfyClass === "KleinKitSweep"
    after(node, "onAdded", () => followers.add(look) && sweep && sweeps.add(node))
    after(node, "onRemoved", () => followers.delete(look) && sweep && sweeps.delete(node))
    for (const event of ["onAdded", "onConfigure", "onConnectionsChange"]) after(node, event, again)
  },
})
