// The sizes of the pictures that an input gets, where the editor knows them before a run.
import { api } from "../../scripts/api.js"

// `photos/a.png [output]`, as ComfyUI's nodes name a file.
const NAME = /^(?:(.*)\/)?(.+?)(?: \[(input|output|temp)\])?$/s

const found = new Map()

/**
 * The size of a picture among the server's files.
 * @param {string} name as of Load Image
 * @param {function} told is called once the size is known
 * @returns {number[] | null} `[width, height]`, turned as its camera says; null as long as it is not known
 */
export function sizeOf(name, told) {
  if (!found.has(name)) {
    found.set(name, null)
    const [, subfolder = "", filename, type = "input"] = NAME.exec(name) ?? []
    const image = new Image()
    image.onload = () => {
      found.set(name, [image.naturalWidth, image.naturalHeight])
      told()
    }
    // It may come later.
    image.onerror = () => found.delete(name)
    image.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  }
  return found.get(name)
}

/** Read every picture anew when it is asked for. */
export function forgetSizes() {
  found.clear()
}
