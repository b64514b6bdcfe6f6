"""All pictures of the help pages: `COMFYUI_PATH=… python tasks.py run docs.pictures` in `.venv` makes them anew."""

from . import guidance_plots, nano_pictures, reference_plots, sigma_plots


def main(arguments: list[str]) -> int:
    return max(module.main(arguments) for module in (guidance_plots, reference_plots, sigma_plots, nano_pictures))
