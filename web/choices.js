// Choices read in the editor's language; what a workflow and a prompt hold is the value itself.
import { app } from "../../scripts/app.js"
import { fetchTexts, texts } from "./words.js"

app.registerExtension({
  name: "KleinKit.choices",
  async beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith("KleinKit")) return
    // The editor has no place for choices among its own translations.
    await fetchTexts()
    const inputs = texts().nodeDefs?.[name]?.inputs ?? {}
    const { addWidget } = nodeType.prototype
    nodeType.prototype.addWidget = function (kind, input, ...rest) {
      const widget = addWidget.call(this, kind, input, ...rest)
      const labels = inputs[input.replaceAll(".", "_")]?.options
      if (kind === "combo" && labels) widget.options.getOptionLabel = (value) => labels[value] ?? value
      return widget
    }
  },

  /**
   * A choice that brings inputs of its own comes before them, as in a graph that is loaded: the editor takes another order for a
   * change by the user, with which undo and redo end.
   */
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("KleinKit")) return
    for (const choice of [...node.inputs]) {
      const brought = node.inputs.filter(({ name }) => name.startsWith(`${choice.name}.`))
      const others = node.inputs.filter((one) => !brought.includes(one))
      node.inputs = others.flatMap((one) => (one === choice ? [one, ...brought] : one))
    }
  },
})
