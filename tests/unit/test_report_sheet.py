"""The contact sheet: pictures as they are, and captions that are all there."""

from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kleinkit.report import sheet as module
from kleinkit.report.sheet import INK, PAPER, Text, font_for, sheet, wrap

CJK = "cfg 5: 青い背景の左に小さな赤い円，蓝色背景左侧的红色小圆"


def picture(height, width, seed=0, batch=1, channels=3):
    # Between the colours of paper and ink, to tell the picture from them.
    return 0.3 + 0.4 * torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def places(page, image):
    """Where a picture lies on a page, pixel by pixel: `[(top, left), …]`."""
    height, width = image.shape[:2]
    corners = (page[0, : page.shape[1] - height + 1, : page.shape[2] - width + 1] == image[0, 0]).all(-1).nonzero().tolist()
    return [(top, left) for top, left in corners if torch.equal(page[0, top : top + height, left : left + width], image)]


def is_ink(page):
    """Which pixels are text, on a page whose pictures are brighter and darker than that."""
    return (page[0] < 0.25).all(-1)


def test_every_picture_is_there_pixel_by_pixel_in_rows():
    images = [picture(40, 100, 1), picture(100, 60, 2, batch=3), picture(8, 6, 3)]
    page = sheet(images, columns=2)
    pictures = [one for batch in images for one in batch]
    corners = [places(page, one) for one in pictures]
    assert all(len(found) == 1 for found in corners)
    middles = [(top + one.shape[0] // 2, left + one.shape[1] // 2) for [(top, left)], one in zip(corners, pictures)]
    rows, columns = sorted({top for top, _ in middles}), sorted({left for _, left in middles})
    assert len(rows) == 3 and len(columns) == 2
    assert middles == [(row, column) for row in rows for column in columns][:5]


@pytest.mark.parametrize("count, columns, across", [(1, 4, 1), (3, 4, 3), (9, 4, 4), (5, 1, 1)])
def test_no_column_is_empty(count, columns, across):
    page = sheet([picture(96, 96, batch=count)], columns=columns)
    assert page.shape[2] // 96 == across


def test_opacity_shows_the_paper_and_grey_is_grey():
    opaque = torch.full((1, 100, 100, 4), 0.5)
    opaque[..., 3] = torch.tensor([0.0, 1.0]).repeat(50)
    page = sheet([opaque, torch.full((1, 100, 100, 1), 0.25)])
    assert torch.allclose(page[0, 50, 7:107], torch.where(opaque[0, 0, :, 3:] == 1, 0.5, PAPER[0] / 255.0).expand(-1, 3))
    assert torch.equal(page[0, 50, 114:214], torch.full((100, 3), 0.25))


@pytest.mark.parametrize(
    "labels, wanted",
    [
        (["a", "b"], ["a", "a", "b"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (["a"], ["a", "", ""]),
        ([], ["", "", ""]),
    ],
)
def test_a_label_belongs_to_an_entry_or_to_a_picture(labels, wanted):
    assert module.one_each([picture(8, 8, batch=2), picture(8, 8)], labels)[1] == wanted


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (([picture(8, 8)], ["a", "b"]), "Expected `labels` to be no more than the 1 pictures, but got 2."),
        (([],), "Expected `images` to be one picture or more, but got 0."),
        (([picture(8, 8)], [], 0), "Expected `columns` to be a whole number between 1 and 64, but got 0."),
        (([picture(8, 8)], [2.5]), "Expected `labels` to be a text, but got 2.5."),
        (([picture(8, 8)], [], 4, None), "Expected `title` to be a text, but got None."),
        (([picture(8, 8)], ["x" * 1001]), "Expected `labels` to be at most 1000 characters long, but got 'xxx"),
        (([picture(8, 8)], [], 4, "x" * 1001), "Expected `title` to be at most 1000 characters long, but got 'xxx"),
    ],
)
def test_what_does_not_fit(arguments, sentence):
    with pytest.raises(ValueError) as error:
        sheet(*arguments)
    assert str(error.value).startswith(sentence)


@given(st.text("aWi .-\n\tg", max_size=200), st.integers(20, 300))
def test_wrapping_keeps_every_character_and_the_width(text, width):
    font = module.ImageFont.load_default(14)
    lines = wrap(text, font, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= width for line in lines)


@pytest.mark.parametrize("label", ["1", "W" * 300, "a word " * 60, "line\nline", CJK, "g" * 40], ids=lambda label: label[:8])
def test_captions_are_never_cut(label):
    page = sheet([picture(16, 16), picture(300, 100)], [label, "2"], title=label)
    ink = is_ink(page)
    edges = torch.cat([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert ink.any() and not edges.any()
    # As much ink as on a page where nothing else is: no picture covers a letter, and no letter another.
    alone = []
    for text, size, width in ((label, 21, page.shape[2] - 14), (label, 14, 100), ("2", 14, 100)):
        drawn = Text(text, size, width)
        paper = torch.empty(drawn.height + 40, width + 100, 3).copy_(torch.tensor(PAPER) / 255.0)
        drawn.put(paper, 20, 0, width + 100)
        alone.append(int(is_ink(paper[None]).sum()))
    assert int(ink.sum()) == sum(alone)


def test_characters_without_a_glyph_are_named(monkeypatch):
    monkeypatch.setattr(module, "SYSTEM_FONTS", ())
    font, text = font_for("cfg 5 赤\a", 14)
    assert text.split() == ["cfg", "5", "U+8D64", "U+0007"]
    assert not [character for character in text if not character.isspace() and module.lacks(font, character)]


def test_a_font_that_knows_the_letters_is_taken(monkeypatch):
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(module, "SYSTEM_FONTS", ("no such font.ttf", str(dejavu)))
    font, text = font_for("Überéß αβγ", 14)
    assert text == "Überéß αβγ" and font.getname()[0] == "DejaVu Sans"


def test_text_is_readable():
    """WCAG's contrast for small text is 4.5."""

    def luminance(color):
        return sum(
            weight * (part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), color)
        )

    assert (luminance(PAPER) + 0.05) / (luminance(INK) + 0.05) > 7
