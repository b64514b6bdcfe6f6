// Klein Probe draws a run while it goes: the server sends every model call.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addFigure } from "./figure.js"
import { nodeOf } from "./graph.js"

const SERIES = [
  {
    key: "alpha",
    look: "faint",
    name: "negative scale α",
    tip: "The scale that brings the negative prediction nearest to the positive one. Klein CFG-Zero* uses it.",
  },
  {
    key: "cosine",
    look: "second",
    name: "agreement cos(v_c, v_u)",
    tip: "How alike the positive and the negative prediction are. At 1 they agree, and guidance changes nothing.",
  },
  {
    key: "norm_ratio",
    look: "line",
    name: "enlarged by ‖v‖/‖v_c‖",
    tip: "How much larger guidance makes the prediction. Far above 1 a picture burns: Klein Renorm holds it back.",
  },
]

const WIDTH = 320

const draws = new WeakMap()

function text(value, digits = 4) {
  return value === null ? "–" : String(Number(value.toPrecision(digits)))
}

function figure(calls) {
  const last = calls[calls.length - 1]
  const run = last.run > 1 ? `run ${last.run}, ` : ""
  const cost = `${last.passes} ${last.passes === 1 ? "pass" : "passes"}, ${text(last.blocks)} blocks, ${text(last.milliseconds, 3)} ms`
  const what = `${run}step ${last.step + 1} of ${last.steps}: cfg ${text(last.cfg)}, ${cost}`
  const sizes = `sizes: positive ‖v_c‖ ${text(last.cond_norm)}, negative ‖v_u‖ ${text(last.uncond_norm)}`
  const ratios = SERIES.map(({ key, name }) => `${name} ${text(last[key])}`).join(", ")
  const values = calls.flatMap((call) => SERIES.map(({ key }) => call[key])).filter((value) => value !== null)
  const end = Math.max(last.steps, last.call)
  return {
    head: `${what}\nnoise left σ ${text(last.sigma)}; ${sizes}`,
    label: `${what}. Noise left: sigma ${text(last.sigma)}, ${sizes}, ${ratios}.`,
    x: [1, end],
    y: [Math.min(...values, 0.9), Math.max(...values, 1.1)],
    ends: ["1", "model call", String(end)],
    series: SERIES.map(({ key, ...one }) => ({ ...one, points: calls.map((call) => [call.call, call[key]]) })),
  }
}

app.registerExtension({
  name: "KleinKit.probe",
  setup() {
    api.addEventListener("kleinkit.probe", ({ detail }) => draws.get(nodeOf(detail.node))?.(detail))
  },
  nodeCreated(node) {
    if (node.comfyClass !== "KleinKitProbe") return
    const show = addFigure(node, "run", "KLEINKIT_RUN")
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
    let calls = []
    let frame
    show({ head: "A run is drawn here while it goes.", label: "No run yet." })
    draws.set(node, (call) => {
      if (call.call === 1) calls = []
      calls.push(call)
      // Calls can come faster than anyone sees.
      frame ??= requestAnimationFrame(() => {
        frame = undefined
        show(figure(calls))
      })
    })
  },
})
