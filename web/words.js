// The editor's language: texts of `locales/`, which ComfyUI serves.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

let asked
let languages = {}

/** Fetch the texts, once. */
export function fetchTexts() {
  asked ??= api.fetchApi("/i18n").then((answer) => answer.json()).then((found) => (languages = found), () => {})
  return asked
}

/** What other packs and this one say in the editor's language: `nodeDefs` and what `main.json` holds. */
export function texts() {
  return languages[app.extensionManager.setting.get("Comfy.Locale")] ?? {}
}

/** A text of a figure, which is its own key: `say("{steps} steps", { steps: 4 })`. */
export function say(text, values = {}) {
  return (texts().KleinKit?.[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name])
}
