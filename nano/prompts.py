"""The prompts of the nano world as the nano text encoder embeds them, in the real ComfyUI."""

import importlib
from typing import NamedTuple

import numpy as np
import torch

from ..checkpoint.inspection import inspect
from . import edits, world

LENGTH = 512
# A prompt of the world fills so many tokens with Klein's chat template; the rest is padding.
FIXED = 24
# The row of the empty prompt.
UNCONDITIONAL = -1
SOME_PADDING = 48
AT_ONCE = 16


class Table(NamedTuple):
    """`text` [prompts, L, 192] at `positions` [L] of the 512: a prompt's own tokens, then some of its padding."""

    text: torch.Tensor
    positions: torch.Tensor

    def row(self, scenes):
        """Rows of scenes [N, 5]."""
        return np.ravel_multi_index(np.asarray(scenes).T, world.COUNTS)

    def asked(self, sentences):
        """Rows of what edits ask for."""
        first, known = int(np.prod(world.COUNTS)), edits.every_sentence()
        return np.array([first + known.index(sentence) for sentence in sentences])


def weight(count):
    """What is added to the attention scores of `count` tokens of padding that stand for all of it."""
    return float(np.log((LENGTH - FIXED) / count))


def encode(text_encoder, sentences):
    """Embeddings of sentences.

    Args:
        text_encoder: path of the nano text encoder.
        sentences: list of str.
    Yields:
        [n, 512, 192] for each `AT_ONCE` of them.
    """
    clip = importlib.import_module("..engine.loading", __package__).load_text_encoder(inspect(text_encoder), trim=True)
    for i in range(0, len(sentences), AT_ONCE):
        tokens = [clip.tokenize(sentence) for sentence in sentences[i : i + AT_ONCE]]
        # ComfyUI encodes the pieces of one prompt as a batch, and joins what comes out.
        together = {key: [piece for one in tokens for piece in one[key]] for key in tokens[0]}
        yield clip.encode_from_tokens(together).reshape(len(tokens), LENGTH, -1)


def embeddings(text_encoder):
    """The table of all prompts of the world, of all that edits ask for, and of the empty prompt in its last row.

    Args:
        text_encoder: path of the nano text encoder.
    """
    rng = np.random.RandomState(0)
    padding = np.sort(rng.choice(np.arange(FIXED, LENGTH), SOME_PADDING, replace=False))
    positions = torch.from_numpy(np.concatenate([np.arange(FIXED), padding]))
    sentences = [*map(world.prompt, np.ndindex(*world.COUNTS)), *edits.every_sentence(), ""]
    return Table(torch.cat([text[:, positions].half() for text in encode(text_encoder, sentences)]), positions)
