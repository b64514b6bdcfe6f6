"""Two VAEs for FLUX.2's latents, set by hand: a latent holds the colours of 8×8 pixel cells.

Encoding and decoding a picture of such cells returns it within 0.02, and both VAEs make the same latents.
"""

import numpy as np

COLOURS = 3
# Of the latent, before its 2×2 patching.
CHANNELS = 32
# From a colour between −1 and 1. TAEF2 squashes latents with 3·tanh(x/3): small ones stay linear.
LATENT_SCALE = 0.5
TAE_WIDTH = 64
# Widths of the stages that ComfyUI 0.20.1 and older give every VAE of FLUX.2's format.
WIDTHS = (128, 256, 512, 512)
GROUPS = 32


def taef2():
    """Weights of a VAE in TAEF2's format. Signed values pass its ReLUs as pairs (x, −x).

    Returns:
        `(encoder, decoder)`, two dicts `{key: float16 array}`.
    """
    pairs = 2 * COLOURS

    def conv(rows, columns, size=3):
        return np.zeros((rows, columns, size, size), np.float16)

    def carry(layers, stages):
        """Blocks that return what they get; strides average 2×2 pixels, upsampled stages repeat."""
        for index, kind in stages:
            if kind in ("stride", "repeat"):
                kernel = conv(TAE_WIDTH, TAE_WIDTH)
                for c in range(pairs):
                    if kind == "stride":
                        kernel[c, c, 1:, 1:] = 0.25
                    else:
                        kernel[c, c, 1, 1] = 1.0
                layers[f"{index}.weight"] = kernel
                continue
            for part in (0, 2, 4):
                layers[f"{index}.conv.{part}.weight"] = conv(TAE_WIDTH, TAE_WIDTH)
                layers[f"{index}.conv.{part}.bias"] = np.zeros(TAE_WIDTH, np.float16)
            if kind == "group norm":
                layers[f"{index}.pool.0.weight"] = conv(4 * TAE_WIDTH, TAE_WIDTH, 1)
                layers[f"{index}.pool.1.weight"] = np.ones(4 * TAE_WIDTH, np.float16)
                layers[f"{index}.pool.1.bias"] = np.zeros(4 * TAE_WIDTH, np.float16)
                layers[f"{index}.pool.3.weight"] = conv(TAE_WIDTH, 4 * TAE_WIDTH, 1)

    encoder = {
        "0.weight": conv(TAE_WIDTH, COLOURS),
        "0.bias": np.zeros(TAE_WIDTH, np.float16),
        "14.weight": conv(CHANNELS, TAE_WIDTH),
        "14.bias": np.zeros(CHANNELS, np.float16),
    }
    decoder = {
        "1.weight": conv(TAE_WIDTH, CHANNELS),
        "1.bias": np.zeros(TAE_WIDTH, np.float16),
        "19.weight": conv(COLOURS, TAE_WIDTH),
        "19.bias": np.full(COLOURS, 0.5, np.float16),
    }
    for c in range(COLOURS):
        for sign, channel in ((1, 2 * c), (-1, 2 * c + 1)):
            encoder["0.weight"][channel, c, 1, 1] = sign
            encoder["0.bias"][channel] = -0.5 * sign
            encoder["14.weight"][c, channel, 1, 1] = sign * 2 * LATENT_SCALE
            decoder["1.weight"][channel, c, 1, 1] = sign
            decoder["19.weight"][c, channel, 1, 1] = sign / (2 * LATENT_SCALE)
    carry(
        encoder,
        [
            (1, "block"),
            (2, "stride"),
            *((i, "block") for i in (3, 4, 5)),
            (6, "stride"),
            *((i, "block") for i in (7, 8, 9)),
            (10, "stride"),
            *((i, "group norm") for i in (11, 12, 13)),
        ],
    )
    carry(
        decoder,
        [
            *((i, "group norm") for i in (3, 4, 5)),
            (7, "repeat"),
            *((i, "block") for i in (8, 9, 10)),
            (12, "repeat"),
            *((i, "block") for i in (13, 14, 15)),
            (17, "repeat"),
            (18, "block"),
        ],
    )
    return encoder, decoder


def flux2():
    """Weights of a VAE in the format of `flux2-vae.safetensors`.

    Nearly all of them are zero: residual blocks return what they get. A colour x travels as the channels (x, −x, K, −K):
    SiLU passes a pair, as silu(x) − silu(−x) = x, and beside a large K a group norm is a fixed scale.

    Returns:
        `{key: array}`, 168 MB of float16.
    """
    large = 256.0
    # 16 apart, which is the widest group: each colour has its own in every norm.
    colours = [(c, [16 * c, 16 * c + 1], [16 * c + 2, 16 * c + 3]) for c in range(COLOURS)]
    carried = [channel for _, pair, constants in colours for channel in pair + constants]
    weights = {
        "bn.running_mean": np.zeros(4 * CHANNELS, np.float16),
        "bn.running_var": np.ones(4 * CHANNELS, np.float16),
        "bn.num_batches_tracked": np.zeros((), np.int64),
    }

    def conv(name, columns, rows, size=3):
        weights[f"{name}.weight"] = np.zeros((rows, columns, size, size), np.float16)
        weights[f"{name}.bias"] = np.zeros(rows, np.float16)

    def carry(name, columns, rows, kernel):
        conv(name, columns, rows, len(kernel))
        weights[f"{name}.weight"][carried, carried] = kernel

    def norm(name, width):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.zeros(width, np.float16), np.zeros(width, np.float16)

    def block(name, columns, rows):
        norm(f"{name}.norm1", columns)
        conv(f"{name}.conv1", columns, rows)
        norm(f"{name}.norm2", rows)
        conv(f"{name}.conv2", rows, rows)
        if rows != columns:
            carry(f"{name}.nin_shortcut", columns, rows, [[1]])

    def half(side, columns, rows, gain, stage, order, blocks, resample, kernel):
        """The encoder or the decoder, from `columns` to `rows` channels: its stages in the order in which they run."""
        before, last = WIDTHS[order[0]], WIDTHS[order[-1]]
        conv(f"{side}.conv_in", columns, before)
        block(f"{side}.mid.block_1", WIDTHS[-1], WIDTHS[-1])
        norm(f"{side}.mid.attn_1.norm", WIDTHS[-1])
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{side}.mid.attn_1.{part}", WIDTHS[-1], WIDTHS[-1], 1)
        block(f"{side}.mid.block_2", WIDTHS[-1], WIDTHS[-1])
        for i in order:
            for j in range(blocks):
                block(f"{side}.{stage}.{i}.block.{j}", before, WIDTHS[i])
                before = WIDTHS[i]
            if i != order[-1]:
                carry(f"{side}.{stage}.{i}.{resample}.conv", before, before, kernel)
        norm(f"{side}.norm_out", last)
        conv(f"{side}.conv_out", last, rows)
        for c, pair, constants in colours:
            weights[f"{side}.conv_in.weight"][pair, c, 1, 1] = 1, -1
            weights[f"{side}.conv_in.bias"][constants] = large, -large
            weights[f"{side}.norm_out.weight"][pair] = large * (2 / (last // GROUPS)) ** 0.5
            weights[f"{side}.conv_out.weight"][c, pair, 1, 1] = gain, -gain

    mean, same = np.zeros((2, 3, 3))
    mean[:2, :2], same[1, 1] = 0.25, 1
    half("encoder", COLOURS, 2 * CHANNELS, LATENT_SCALE, "down", (0, 1, 2, 3), 2, "downsample", mean)
    half("decoder", CHANNELS, COLOURS, 1 / LATENT_SCALE, "up", (3, 2, 1, 0), 3, "upsample", same)
    for name, channels in (("quant_conv", 2 * CHANNELS), ("post_quant_conv", CHANNELS)):
        conv(name, channels, channels, 1)
        weights[f"{name}.weight"][:, :, 0, 0] = np.eye(channels)
    return weights
