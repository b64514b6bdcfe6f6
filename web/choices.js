// Choices read in the editor's language; what a workflow and a prompt hold is the value itself.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

let translations

// Those of `locales/`, which ComfyUI serves; the editor has no place for choices among its own.
async function labelsOf(nodeId) {
  translations ??= api.fetchApi("/i18n").then((answer) => answer.json())
  const { [app.extensionManager.setting.get("Comfy.Locale")]: texts } = await translations
  return texts?.nodeDefs?.[nodeId]?.inputs ?? {}
}

app.registerExtension({
  name: "KleinKit.choices",
  async beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith("KleinKit")) return
    const inputs = await labelsOf(name)
    const { addWidget } = nodeType.prototype
    nodeType.prototype.addWidget = function (kind, input, ...rest) {
      const widget = addWidget.call(this, kind, input, ...rest)
      const labels = inputs[input.replaceAll(".", "_")]?.options
      if (kind === "combo" && labels) widget.options.getOptionLabel = (value) => labels[value] ?? value
      return widget
    }
  },
})
