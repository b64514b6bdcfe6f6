// Klein Probe draws a run while it goes: the server sends every model call.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { addFigure } from "./figure.js"
import { nodeOf } from "./graph.js"

const SERIES = [
  { key: "alpha", look: "faint", name: "α" },
  { key: "cosine", look: "second", name: "cos(v_c, v_u)" },
  { key: "norm_ratio", look: "line", name: "‖v‖/‖v_c‖" },
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
  const sizes = `‖v_c‖ ${text(last.cond_norm)}, ‖v_u‖ ${text(last.uncond_norm)}`
  const ratios = SERIES.map(({ key, name }) => `${name} ${text(last[key])}`).join(", ")
  const values = calls.flatMap((call) => SERIES.map(({ key }) => call[key])).filter((value) => value !== null)
  const end = Math.max(last.steps, last.call)
  return {
    head: `${what}\nσ ${text(last.sigma)}, ${sizes}`,
    label: `${what}. Sigma ${text(last.sigma)}, ${sizes}, ${ratios}.`,
    x: [1, end],
    y: [Math.min(...values, 0.9), Math.max(...values, 1.1)],
    ends: ["1", "model call", String(end)],
    series: SERIES.map(({ key, look, name }) => ({ look, name, points: calls.map((call) => [call.call, call[key]]) })),
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
