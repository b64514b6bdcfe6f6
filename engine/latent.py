"""What a latent is."""

from ..checks import expected

CHANNELS = 128
OTHERS = {
    (4, 4): "Stable Diffusion 1.5 or SDXL",
    (4, 16): "FLUX.1, Stable Diffusion 3 or Z-Image",
    (5, 16): "a video model such as Wan 2.1 or HunyuanVideo, or of Qwen-Image",
    (5, 48): "Wan 2.2",
    (5, 128): "LTX-Video",
}


def latent_tokens(shape):
    """The number of 16×16 cells of a FLUX.2 latent of `shape` [B, 128, H/16, W/16].

    Raises:
        ValueError: it is no FLUX.2 latent; the message says whose it looks like.
    """
    if len(shape) == 4 and shape[1] == CHANNELS:
        return shape[2] * shape[3]
    other = OTHERS.get((len(shape), shape[1]) if len(shape) > 1 else None, "another model")
    fits = f"a FLUX.2 latent [batch, {CHANNELS}, height/16, width/16], as of EmptyFlux2LatentImage or VAEEncode"
    raise ValueError(f"{expected('latent', fits, list(shape))} It looks like a latent of {other}.")
