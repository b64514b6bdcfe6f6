"""Attention of a picture to two texts at once, where the picture's attention to itself is computed once."""

from collections.abc import Callable

import torch

# `(q, k, v) → (output, lse)`: [B, heads, queries, head width], and the logarithm of the sum of the exponentials of each
# query's scores, [B, heads, queries] in float32.
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# What torch's kernels take a head's width to be a multiple of.
ALIGNMENT = 8


def on_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """It pads the queries of its lse, on most GPUs to a multiple of 32."""
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, lse[..., : q.shape[2]]


def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attention | None:
    """The attention of torch that gives its lse too, for these tensors and slices of their tokens; None where none fits.

    On CUDA it is the one that torch itself would choose of flash and memory-efficient attention.
    """
    # An lse has no gradient, and autocast does not know the kernels.
    if q.shape[-1] % ALIGNMENT or any(tensor.requires_grad or tensor.dtype != q.dtype for tensor in (q, k, v)):
        return None
    if q.device.type == "cpu":
        return on_cpu
    if q.device.type != "cuda":
        return None
    backends = torch.backends.cuda
    parameters = backends.SDPAParams(q, k, v, None, 0.0, False, False)
    if backends.can_use_flash_attention(parameters):
        return flash
    return efficient if backends.can_use_efficient_attention(parameters) else None


def merged(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The output of the attention to two sets of keys together, of `(output, lse)` of each.

    softmax over both lse, which no size of the two overflows; as in FlashAttention, arXiv 2205.14135, section 3.1.
    """
    share = torch.sigmoid(other[1] - one[1])[..., None]
    return torch.lerp(one[0], other[0], share.to(one[0].dtype))


def to_both(
    attention: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, negative: int, positive: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What two attentions give, of the positive's text with the image and of the negative's text with the image.

    With n and p tokens of text and m of the image it takes m² + 2m(n + p) + n² + p² products of a key and a query, where
    the two attentions take (m + p)² + (m + n)²: m² less.

    Args:
        attention: as `kernel` gives it.
        q, k, v: [B, heads, tokens, head width] of the negative's text, the positive's text and the image; keys and values
            may have more tokens, at the end.
        negative, positive: n and p.
    Returns:
        `(positive, negative's text, negative's image)`: [B, p + m, channels], [B, n, channels], [B, m, channels].
    """
    image = negative + positive
    to_image = attention(q, k[:, :, image:], v[:, :, image:])

    def with_text(queries: slice, text: slice) -> torch.Tensor:
        to_text = attention(q[:, :, queries], k[:, :, text], v[:, :, text])
        out, lse = to_image
        return merged((out[:, :, queries], lse[:, :, queries]), to_text).transpose(1, 2).flatten(2)

    of_negative, of_positive = slice(negative), slice(negative, image)
    return (
        with_text(slice(negative, None), of_positive),
        with_text(of_negative, of_negative),
        with_text(slice(image, None), of_negative),
    )
