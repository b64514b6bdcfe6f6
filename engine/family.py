"""Which family of Kleins a MODEL of ComfyUI is of, and whether it is a flow map.

It is asked when it matters, not when a file is loaded: a LoRA or another node can turn a base model into a flow map. The
names of the parameters answer, and not the model's class: a loader of another pack has a class of its own.
"""

from comfy.model_base import BaseModel

from ..checkpoint.families import FAMILIES, Family


def family_of_model(model: BaseModel) -> Family | None:
    """The family whose signs are all among a model's parameters, in its original names or in diffusers'; None of another.

    Args:
        model: ComfyUI's `BaseModel`.
    """
    names = _names(model)

    def has(layer: str) -> bool:
        return any(f".{layer}." in name for name in names)

    for family in FAMILIES.values():
        if all(has(sign) or has(family.outside[sign][1]) for sign in family.signs):
            return family
    return None


def is_flow_map(model: BaseModel) -> bool:
    """Whether a model predicts the mean velocity of a whole step, and so asks where the step goes: it has a layer for that.

    Args:
        model: ComfyUI's `BaseModel`.
    """
    layers = [layer for family in FAMILIES.values() for own in family.only_distilled for layer in (own, family.outside[own][1])]
    embedders = {layer.partition(".")[0] for layer in layers}
    return any(f".{embedder}." in name for name in _names(model) for embedder in embedders)


def _names(model: BaseModel) -> list[str]:
    """The names of a model's parameters, a dot before each part."""
    return [f".{name}" for name, _ in model.named_parameters()]
