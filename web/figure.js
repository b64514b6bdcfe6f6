/*
 * A small figure inside a node: `const show = addFigure(node, "preview", "KLEINKIT_SIGMAS")`, then as often as you like
 * show({ head, label, x: [from, to], y: [from, to], ends: [left, right], series: [{ look, points, name, tip }], off }).
 * `head` is the text above and `label` what a screen reader says; `ends` are the texts below the axis; a `look` is
 * "line", "second", "faint", "dots", "bars" or "bars faint"; `points` are [x, y], and a y of null leaves a gap; a series with a `name`
 * is in the legend, with `tip` as its tooltip. Without `series` only the texts are shown, and dimly where `off`. All text stays text.
 */
import { say } from "./words.js"

const SVG = "http://www.w3.org/2000/svg"
const HEIGHT = 164
const MARGINS = 20
const LINE = 15
const PADDING = 12

const STYLE = `
.kleinkit-figure {
  --kleinkit-accent: color-mix(in srgb, var(--primary-background, #2b8fe6) 65%, var(--input-text));
  box-sizing: border-box; min-height: ${HEIGHT}px; padding: 6px 8px; border-radius: 6px; overflow: hidden;
  display: grid; grid-template: auto minmax(0, 1fr) auto auto / auto minmax(0, 1fr); gap: 2px 4px;
  background: var(--component-node-widget-background, var(--comfy-input-bg)); color: var(--input-text); font: 11px/1.35 Inter, Arial, sans-serif;
  font-variant-numeric: tabular-nums; user-select: none;
}
.kleinkit-figure:focus-visible { outline: 2px solid var(--kleinkit-accent); outline-offset: -2px; }
.kleinkit-figure > * { min-width: 0; }
.kleinkit-figure .head, .kleinkit-figure .legend { grid-column: 1 / 3; overflow-wrap: anywhere; }
.kleinkit-figure .head { white-space: pre-line; }
.kleinkit-figure .ticks, .kleinkit-figure .ends { display: flex; justify-content: space-between; font-size: 10px; opacity: 0.75; }
.kleinkit-figure .ticks { flex-direction: column; align-items: flex-end; line-height: 1; }
.kleinkit-figure .ends { grid-column: 2; }
.kleinkit-figure .legend { display: flex; flex-wrap: wrap; gap: 0 10px; font-size: 10px; }
.kleinkit-figure .legend > span::before {
  content: ""; display: inline-block; width: 12px; margin-right: 4px; vertical-align: middle;
  border-top: 2px solid var(--color, currentColor);
}
.kleinkit-figure .plot { position: relative; }
.kleinkit-figure svg { position: absolute; width: 100%; height: 100%; overflow: visible; }
.kleinkit-figure path { fill: none; stroke: var(--color, currentColor); stroke-width: 1.5; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.kleinkit-figure .frame { stroke-width: 1; opacity: 0.35; }
.kleinkit-figure .line, .kleinkit-figure .dots, .kleinkit-figure .bars { --color: var(--kleinkit-accent); }
.kleinkit-figure .second { --color: #e08a1e; }
.kleinkit-figure path.faint, .kleinkit-figure .faint::before { opacity: 0.45; }
.kleinkit-figure path.dots { stroke-width: 5; stroke-linecap: round; }
.kleinkit-figure path.bars { stroke: none; fill: var(--color); }
.kleinkit-figure.empty .plot { visibility: hidden; }
.kleinkit-figure.off { opacity: 0.45; }
.kleinkit-figure.texts { display: block; min-height: 0; overflow-y: auto; }
.kleinkit-figure [title] { text-decoration: underline dotted; text-underline-offset: 2px; cursor: help; }
`

document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }))

function element(tag, className) {
  return Object.assign(document.createElement(tag), { className })
}

/** The path of a series on a field of 100 × 100; a bar spans a step, half to the left and half to the right. */
function pathOf({ look, points }, [left, right], [low, high]) {
  const across = (x) => (((x - left) / (right - left || 1)) * 100).toFixed(2)
  const down = (y) => (100 - ((y - low) / (high - low || 1)) * 100).toFixed(2)
  let pen = "M"
  return points
    .map(([x, y]) => {
      if (!Number.isFinite(y)) {
        pen = "M"
        return ""
      }
      if (look === "dots") return `M${across(x)} ${down(y)}h0`
      if (look.startsWith("bars")) return `M${across(x - 0.4)} ${down(low)}V${down(y)}H${across(x + 0.4)}V${down(low)}Z`
      const move = `${pen}${across(x)} ${down(y)}`
      pen = "L"
      return move
    })
    .join("")
}

// What a reader may not know, in the words that a pointer brings up.
const EXPLAINED = {
  "‖v‖/‖v_c‖": "‖v‖/‖v_c‖: the size of the guided prediction, compared with that of the positive one; 1 is equal",
  "cos(v_c, v_u)": "cos(v_c, v_u): how alike the positive and the negative prediction are; 1 is the same direction",
  "‖v_c‖": "‖v_c‖: the size of the positive prediction",
  "‖v_u‖": "‖v_u‖: the size of the negative prediction",
  "‖v‖": "‖v‖: the size of the guided prediction",
  α: "α: the part of the negative prediction that CFG-Zero* keeps",
  tokens: "tokens: squares of 16×16 pixels, by which the model sees a picture",
  mu: "mu: how much of the run is spent at high noise",
  σ: "σ (sigma): the share of noise in the picture, from 1 to 0",
}
const SYMBOLS = new RegExp(`(${Object.keys(EXPLAINED).map((one) => (/^[a-z]+$/.test(one) ? `\\b${one}\\b` : one.replace(/[()]/g, "\\$&"))).join("|")})`)

/** Put a text into an element, with a title on every symbol. */
function write(parent, text) {
  const part = (piece) => {
    const title = EXPLAINED[piece]
    return title ? Object.assign(element("span", ""), { textContent: piece, title: say(title) }) : piece
  }
  parent.replaceChildren(...text.split(SYMBOLS).map(part))
  return parent
}

function tick(value) {
  return String(Number(value.toPrecision(3)))
}

/**
 * Have a node begin as large as the editor makes it when it is loaded, and be loaded as large as it was saved: the editor takes
 * every other size for a change by the user, with which undo and redo end. A choice that brings inputs of its own shrinks a node.
 */
function keepSize(node) {
  const atLeast = ([width, height], other) => node.setSize([Math.max(width, other[0]), Math.max(height, other[1])])
  atLeast(node.size, node.computeSize())
  const { onConfigure } = node
  node.onConfigure = function (saved) {
    onConfigure?.call(this, saved)
    if (saved.size) atLeast(node.size, saved.size)
  }
}

/**
 * Add a figure to a node.
 * @param node LGraphNode
 * @param {string} name of the widget
 * @param {string} type of the widget, of its own
 * @param {number} lines of text, for a figure that is nothing else
 * @returns {function} `show(content)`, see above
 */
export function addFigure(node, name, type, lines) {
  const root = element("div", lines ? "kleinkit-figure texts" : "kleinkit-figure")
  root.tabIndex = 0
  root.setAttribute("role", "img")
  const parts = ["head", "ticks", "plot", "ends", "legend"]
  const [head, ticks, plot, ends, legend] = parts.map((part) => element("div", part))
  const svg = document.createElementNS(SVG, "svg")
  svg.setAttribute("viewBox", "0 0 100 100")
  svg.setAttribute("preserveAspectRatio", "none")
  plot.append(svg)
  root.append(...(lines ? [head] : [head, ticks, plot, ends, legend]))

  const height = (lines ? lines * LINE + PADDING : HEIGHT) + MARGINS
  const most = lines ? { getMaxHeight: () => height } : {}
  const widget = node.addDOMWidget(name, type, root, { serialize: false, hideInPanel: true, getMinHeight: () => height, ...most })
  // The option keeps it out of prompts, this out of workflows.
  widget.serialize = false
  keepSize(node)

  const texts = (parent, values) =>
    parent.replaceChildren(...values.map((text) => write(element("span", ""), text)))

  return function show({ head: text, label, x, y, ends: endTexts = [], series = [], off = false }) {
    write(head, text)
    root.setAttribute("aria-label", label)
    root.classList.toggle("empty", !series.length)
    root.classList.toggle("off", off)
    texts(ticks, series.length ? [y[1], y[0]].map(tick) : [])
    texts(ends, endTexts)
    const named = series.filter(({ name, points }) => name && points.some(([, value]) => Number.isFinite(value)))
    texts(legend, named.map((one) => one.name))
    named.forEach(({ look, tip = "" }, index) => Object.assign(legend.children[index], { className: look, title: tip }))
    const paths = [{ look: "frame", d: "M0 0V100H100" }]
    for (const one of series) paths.push({ look: one.look, d: pathOf(one, x, y) })
    svg.replaceChildren(
      ...paths.map(({ look, d }) => {
        const path = document.createElementNS(SVG, "path")
        path.setAttribute("class", look)
        path.setAttribute("d", d)
        return path
      }),
    )
  }
}
