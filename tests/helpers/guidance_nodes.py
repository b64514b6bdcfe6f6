"""Guidance nodes with settings at which they act; `EVERY_NODE` is for a model of two double and two single blocks."""

# Klein Base Uncond takes its model beside these. A test holds that none is missing.
EVERY_NODE = {
    "KleinKitCFG": dict(schedule={"schedule": "diminishing", "cutoff": 0.8}, unguided="unconditional"),
    "KleinKitCFGZeroStar": dict(optimized_scale=True, zero_init_steps=1),
    "KleinKitSkipLayerGuidance": dict(
        scale=2.0, double_layers="1", single_layers="1", start=0.0, end=1.0, mode="attention", rescale=0.3
    ),
    "KleinKitSEG": dict(scale=2.0, double_layers="1", single_layers="1", start=0.0, end=1.0, blur_sigma=1.0),
    "KleinKitRenorm": dict(mode="token", strength=0.7, shrink_only=False),
    "KleinKitSlerpCFG": {},
    "KleinKitImageCFG": dict(image_scale=2.0),
    "KleinKitBaseUncond": {},
    "KleinKitAutoGuidance": dict(scale=2.0, double_layers="", single_layers="1", prompt="both", start=0.0, end=1.0),
    "KleinKitMomentum": dict(alpha=0.5, beta=0.6, start=0.0, end=1.0),
    "KleinKitAdaptiveGuidance": dict(threshold=0.9),
    "KleinKitNAG": dict(scale=5.0, tau=2.5, alpha=0.25, start=0.0, end=1.0),
    "KleinKitAPG": dict(eta=0.0, norm_threshold=2.0, momentum=-0.5, space="denoised", start=0.0, scale=0.0),
    "KleinKitMAMBOG": dict(alpha=2.0),
    "KleinKitFDG": dict(shares="1, 0.2, 0.7"),
    "KleinKitTCFG": {},
    "KleinKitGuidance": dict(preset="faster"),
}


def skips(layer: str, scale: float = 2.0) -> tuple[tuple[str, dict], tuple[str, dict]]:
    """Skip-layer guidance of a single block with the same settings: our node, and ComfyUI's."""
    return (
        (
            "KleinKitSkipLayerGuidance",
            dict(scale=scale, double_layers="", single_layers=layer, start=0.0, end=1.0, mode="block", rescale=0.0),
        ),
        (
            "SkipLayerGuidanceDiT",
            dict(double_layers="", single_layers=layer, scale=scale, start_percent=0.0, end_percent=1.0, rescaling_scale=0.0),
        ),
    )
