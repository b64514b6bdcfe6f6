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
})
