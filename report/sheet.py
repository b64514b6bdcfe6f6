"""A labelled grid of pictures."""

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..checks import expected, number

MOST_COLUMNS = 64
LONGEST_TEXT = 1000
NARROWEST_CELL = 96
PAPER, INK = (246, 246, 246), (24, 24, 24)

# Pillow brings a font of plain Latin letters. A text with others takes the first of these fonts that the system has and
# that knows its letters.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansJP-Regular.otf",
    "NotoSansSC-Regular.otf",
    "YuGothM.ttc",
    "msgothic.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    "wqy-zenhei.ttc",
    "ipag.ttf",
)
# No font has a glyph for the last code point.
NO_CHARACTER = "\U0010ffff"


def sheet(
    images: Sequence[torch.Tensor],
    labels: Sequence[str] = (),
    columns: int = 4,
    title: str = "",
    placed: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Pictures in a grid on light paper, each with its label below. Cells are as large as the largest picture; none is scaled.

    Args:
        images: [B, H, W, C] tensors from 0 to 1. C is 1, 3, or 4 with the opacity last.
        labels: where there are as many as `images`, each goes with all pictures of its batch. Else they go to the pictures
            in order, and there are no more of them than pictures.
        columns: 1 to 64.
        title: above the grid.
        placed: called after each picture that was put on the sheet.
    Returns:
        [1, H, W, 3] float32.
    Raises:
        ValueError: there are no pictures, more labels than pictures, a text of more than 1000 characters, or `columns` does
            not fit.
    """
    number("columns", columns, 1, MOST_COLUMNS)
    for name, text in (("title", title), *(("labels", label) for label in labels)):
        if not isinstance(text, str):
            raise expected(name, "a text", text)
        if len(text) > LONGEST_TEXT:
            raise expected(name, f"at most {LONGEST_TEXT} characters long", text)
    pictures, labels = one_each(images, labels)
    height = max(picture.shape[0] for picture in pictures)
    width = max(NARROWEST_CELL, *(picture.shape[1] for picture in pictures))
    size = min(max(width // 16, 14), 64)
    gap = size // 2
    columns = min(columns, len(pictures))
    across = columns * (width + gap) + gap

    heading = Text(title, size * 3 // 2, across - 2 * gap)
    captions = [Text(label, size, width) for label in labels]
    tops, end = [], gap + heading.height + gap * bool(title)
    for first in range(0, len(pictures), columns):
        tops.append(end)
        end += height + gap + max(caption.height + gap * bool(caption.height) for caption in captions[first : first + columns])

    page = torch.empty(end, across, 3).copy_(torch.tensor(PAPER) / 255.0)
    heading.put(page, gap, 0, across)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        top, left = tops[i // columns], gap + i % columns * (width + gap)
        caption.put(page, top + height + gap // 2, left - gap // 2, width + gap)
        put(page, picture, top + (height - picture.shape[0]) // 2, left + (width - picture.shape[1]) // 2)
        placed()
    return page[None]


def put(page: torch.Tensor, picture: torch.Tensor, top: int, left: int) -> None:
    """Put a picture [H, W, C] on a page [H, W, 3], in place."""
    place = page[top : top + picture.shape[0], left : left + picture.shape[1]]
    if picture.shape[-1] == 4:
        picture = torch.lerp(place, picture[..., :3].float(), picture[..., 3:].float())
    place.copy_(picture)


def one_each(images: Sequence[torch.Tensor], labels: Sequence[str]) -> tuple[list[torch.Tensor], list[str]]:
    """The pictures of all batches, and a label for each, empty where there is none."""
    pictures = [picture for batch in images for picture in batch]
    if not pictures:
        raise expected("images", "one picture or more", 0)
    if len(labels) == len(images):
        labels = [label for batch, label in zip(images, labels) for _ in batch]
    if len(labels) > len(pictures):
        raise expected("labels", f"no more than the {len(pictures)} pictures", len(labels))
    return pictures, [label or "" for _, label in zip_longest(pictures, labels)]


class Text:
    """A text set in a font that knows its characters, in lines that fit a width."""

    def __init__(self, text: str, size: int, width: int):
        self.font, text = font_for(text, size)
        self.lines = wrap(text, self.font, width)
        self.line_height = sum(self.font.getmetrics())
        self.height = self.line_height * len(self.lines)

    def put(self, page: torch.Tensor, top: int, left: int, width: int) -> None:
        """Draw the lines on a page, centred in `width` pixels."""
        if self.lines:
            image = Image.new("RGB", (width, self.height), PAPER)
            draw = ImageDraw.Draw(image)
            for i, line in enumerate(self.lines):
                draw.text((width // 2, i * self.line_height), line, INK, self.font, anchor="ma")
            put(page, torch.from_numpy(np.array(image)) / 255.0, top, left)


def font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The first font that knows every character of a text. Where none does, the font that lacks the fewest.

    Returns:
        `(font, text)`. The characters that the font lacks are written as `U+8D64`.
    """
    tried = []
    for font in fonts(size):
        lacking = {character for character in set(text) if not character.isspace() and lacks(font, character)}
        tried.append((font, lacking))
        if not lacking:
            break
    font, lacking = min(tried, key=lambda pair: len(pair[1]))
    return font, "".join(f" U+{ord(character):04X} " if character in lacking else character for character in text)


def fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    """Pillow's own font, then those of the system."""
    # With a size it is one of FreeType.
    yield cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    for name in SYSTEM_FONTS:
        path = find_font(name)
        if path:
            yield ImageFont.truetype(path, size)


@functools.cache
def find_font(name: str) -> str | None:
    """The path of a font of the system, or None."""
    try:
        return cast(str, ImageFont.truetype(name).path)
    except OSError:
        return None


def lacks(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether a font shows a character as it shows one that does not exist."""
    # Pillow's hints do not say that a mask is a sequence of bytes.
    mask: Any = font.getmask(character)
    none: Any = font.getmask(NO_CHARACTER)
    return mask.size == none.size and bytes(mask) == bytes(none)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines no wider than `width` pixels. A line ends at a space, or inside a word that is wider than a line."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            lines += [line] if line else []
            while font.getlength(word) > width:
                fitting = bisect_right(range(1, len(word) + 1), width, key=lambda n: font.getlength(word[:n]))
                lines.append(word[: max(fitting, 1)])
                word = word[max(fitting, 1) :]
            line = word
        lines.append(line)
    return lines
