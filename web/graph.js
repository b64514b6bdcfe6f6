// The way through a graph, as a prompt takes it: through subgraphs, reroutes and bypassed nodes.
import { app } from "../../scripts/app.js"

const MUTED = 2
const BYPASSED = 4
const FARTHEST = 100
// ComfyUI's node that hands on one of two inputs.
const SWITCH = "ComfySwitchNode"
// What a link begins and ends at, inside a subgraph.
const OUTSIDE = { from: -10, to: -20 }

/** The node of an id; "12:5" is node 5 in the subgraph of node 12. */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part)
    graph = node?.subgraph
  }
  return node
}

/** The node that stands for a subgraph; undefined at the root, and where several nodes do. */
function outer(graph) {
  if (graph?.isRootGraph !== false) return undefined
  const found = new Set()
  const search = ({ nodes }) => {
    for (const node of nodes) {
      if (!node.subgraph) continue
      if (node.subgraph === graph) found.add(node)
      search(node.subgraph)
    }
  }
  search(graph.rootGraph)
  return found.size === 1 ? [...found][0] : undefined
}

/** "muted" or "bypassed", where a node, or the subgraph that it is in, is so. */
export function off(node) {
  for (let one = node; one; one = outer(one.graph)) {
    if (one.mode === MUTED) return "muted"
    if (one.mode === BYPASSED) return "bypassed"
  }
}

function linkOf(graph, id) {
  return graph.links.get?.(id) ?? graph.links[id]
}

export function slot(node, name) {
  return node.inputs?.findIndex((input) => input.name === name) ?? -1
}

export function linked(node, name) {
  return node.inputs?.[slot(node, name)]?.link != null
}

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)
}

/**
 * What an input holds: `{ node, output }` of the node that makes it, or `{ node, widget }` of the widget that it is typed in.
 * null where a prompt leaves the input out, undefined where it cannot be told.
 */
export function origin(node, index, hops = 0) {
  const input = node?.inputs?.[index]
  if (!input || hops > FARTHEST) return undefined
  const found = input.link == null ? null : arriving(node.graph, linkOf(node.graph, input.link), hops + 1)
  if (found !== null) return found
  // Also where a link leads to nothing, as to a muted node, a prompt holds what the widget has.
  const widget = node.getWidgetFromSlot?.(input) ?? widgetOf(node, input.widget?.name ?? input.name)
  return widget ? { node, widget } : null
}

function arriving(graph, link, hops, around) {
  if (link?.origin_id == OUTSIDE.from) return origin(around ?? outer(graph), link.origin_slot, hops)
  return link && made(graph.getNodeById(link.origin_id), link.origin_slot, hops)
}

function made(node, output, hops) {
  if (!node || hops > FARTHEST) return undefined
  if (node.mode === MUTED) return null
  if (node.mode === BYPASSED) {
    const { type } = node.outputs[output]
    const same = [output, ...(node.inputs?.keys() ?? [])].find((index) => node.inputs?.[index]?.type === type)
    // What is typed in it goes nowhere.
    const link = node.inputs?.[same]?.link
    return link == null ? null : arriving(node.graph, linkOf(node.graph, link), hops + 1)
  }
  if (node.isVirtualNode && !node.subgraph) return virtual(node, output, hops)
  if (node.comfyClass === SWITCH) {
    const chosen = origin(node, slot(node, "switch"), hops)?.widget?.value
    if (typeof chosen === "boolean") return origin(node, slot(node, chosen ? "on_true" : "on_false"), hops)
  }
  if (node.subgraph) {
    const link = linkOf(node.subgraph, node.subgraph.outputs[output]?.linkIds[0])
    return arriving(node.subgraph, link, hops + 1, node)
  }
  // A node that takes something in may make anything of it.
  const alone = node.inputs?.every(({ link }) => link == null) ?? true
  const widget = alone ? widgetOf(node, "value") : undefined
  return widget ? { node, widget } : { node, output }
}

/** What a node that is in the editor alone hands on: a Reroute, a Primitive, or another pack's Set and Get. */
function virtual(node, output, hops) {
  const from = node.resolveVirtualOutput?.(output)
  if (from) return made(from.node, from.slot, hops + 1)
  const link = node.getInputLink?.(output)
  if (link) return origin(node.graph.getNodeById(link.target_id), link.target_slot, hops)
  // A Primitive's first widget bears the name of what it is connected to.
  const widget = node.widgets?.[0]
  return widget ? { node, widget } : null
}

/** The node that makes what an input takes. */
export function source(node, name) {
  return origin(node, slot(node, name))?.node
}

function* targets(node, output) {
  for (const id of node.outputs[output]?.links ?? []) yield* entered(node.graph, linkOf(node.graph, id))
}

function* entered(graph, link) {
  if (link?.target_id == OUTSIDE.to) {
    const outside = outer(graph)
    if (outside) yield* targets(outside, link.target_slot)
    return
  }
  const node = link && graph.getNodeById(link.target_id)
  if (!node?.subgraph || node.mode) {
    if (node) yield node
    return
  }
  for (const id of node.subgraph.inputs[link.target_slot]?.linkIds ?? []) {
    yield* entered(node.subgraph, linkOf(node.subgraph, id))
  }
}

/** Nodes that a node leads to, the nearest first; of those that are off, none. */
export function* behind(node) {
  const found = new Set([node])
  for (const one of found) {
    if (one !== node && !one.mode) yield one
    if (found.size > FARTHEST) return
    if (one.mode === MUTED) continue
    for (const output of one.outputs?.keys() ?? []) for (const next of targets(one, output)) found.add(next)
  }
}

export function has(slots, type) {
  return slots?.some((one) => one.type === type) ?? false
}

/** The nodes that a model passes before it reaches a node, from the loader on; the first is undefined where none is connected. */
export function chainTo(node) {
  const chain = []
  for (let one = node; has(one?.inputs, "MODEL") && chain.length < FARTHEST; ) {
    one = origin(one, one.inputs.findIndex(({ type }) => type === "MODEL"))?.node
    chain.unshift(one)
  }
  return chain
}
