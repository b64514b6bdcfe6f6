/*
 * The pictures that the pack's workflows begin with. Load Image reads ComfyUI's input folder alone: when a workflow that names
 * one of them is opened, it is uploaded there as Load Image's own button would do it. A file that is there is never written over.
 */
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const LOADS = "LoadImage"
const OURS = /^kleinkit-[a-z-]+\.png$/
// The folder's name, which is whoever installed the pack's choice.
const PACK = new URL(import.meta.url).pathname.split("/").at(-2)

function named(nodes) {
  const names = nodes.filter(({ type }) => type === LOADS).map(({ widgets_values }) => widgets_values?.[0])
  return [...new Set(names)].filter((name) => OURS.test(name))
}

async function upload(name) {
  const picture = await api.fetchApi(`/workflow_templates/${PACK}/examples/${name}`)
  if (!picture.ok) return
  const body = new FormData()
  body.append("image", new File([await picture.blob()], name, { type: "image/png" }))
  await api.fetchApi("/upload/image", { method: "POST", body })
}

app.registerExtension({
  name: "KleinKit.examples",

  async beforeConfigureGraph({ nodes = [] }) {
    try {
      await Promise.all(named(nodes).map(upload))
    } catch (error) {
      // The workflow opens all the same, and Load Image says which picture is missing.
      console.warn("KleinKit: an example picture could not be put into ComfyUI's input folder.", error)
    }
  },

  /** The list of Load Image was made when the editor started. */
  afterConfigureGraph() {
    for (const node of app.graph.nodes) {
      const widget = node.type === LOADS && node.widgets?.find(({ name }) => name === "image")
      const { values } = (widget || {}).options ?? {}
      if (Array.isArray(values) && OURS.test(widget.value) && !values.includes(widget.value)) values.push(widget.value)
    }
  },
})
