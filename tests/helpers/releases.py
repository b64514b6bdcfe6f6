"""What the ComfyUI at hand is too old for: tests that return early ask here, so that none passes for another reason."""

from kleinkit.compat import numbers


def is_older(release, here):
    """Whether the ComfyUI at hand is older than a release.

    Args:
        release: the first one that has something.
        here: whether that something is here. A newer ComfyUI that lacks it, or an older one that has it, is an error.
    """
    from comfyui_version import __version__

    older = numbers(__version__) < numbers(release)
    assert older != bool(here), f"ComfyUI {__version__} is {'older' if older else 'not older'} than {release}."
    return older
