"""Pixels as Pillow has them, and back: 8 bits a colour."""

import numpy as np
import torch
from PIL import Image


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """Pixels [H, W, 3] or [H, W], from 0 to 1, as a picture of Pillow's."""
    return Image.fromarray((pixels.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def as_pixels(picture: Image.Image) -> torch.Tensor:
    """A picture of Pillow's as float32 [H, W, 3] or [H, W], from 0 to 1."""
    return torch.from_numpy(np.array(picture)).float() / 255
