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


def may_lack(release, here):
    """Whether the ComfyUI at hand lacks something that a release has, and that came at some release before it.

    Args:
        release: one that has it. This one and newer ones must have it.
        here: whether it is here.
    """
    from comfyui_version import __version__

    assert here or numbers(__version__) < numbers(release), f"ComfyUI {__version__} lacks what {release} has."
    return not here
