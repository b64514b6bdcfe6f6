"""The plot of a report: every panel shows its own numbers, under its own title."""

import itertools

import numpy as np
import pytest
from kleinkit.report.plot import draw, plot
from kleinkit.report.record import RunRecord
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

# Words that a reader understands, the symbol of the papers, and what is drawn solid and dashed; in the panels' order.
PANELS = [
    (("guidance scale",), ("cfg",), "cfg", None),
    (("agreement", "positive", "negative"), ("cos($v_c$, $v_u$)",), "cosine", None),
    (("scale for the negative",), ("α",), "alpha", None),
    (("size", "positive", "negative", "solid", "dashed"), ("‖$v_c$‖", "‖$v_u$‖"), "cond_norm", "uncond_norm"),
    (("how much guidance enlarges",), ("‖$v$‖ / ‖$v_c$‖",), "norm_ratio", None),
    (("time of a model call",), ("milliseconds",), "milliseconds", None),
]
MEASURED = ("cfg", "cosine", "alpha", "cond_norm", "uncond_norm", "norm_ratio", "milliseconds")


def record(seed=0, steps=4, guidance=("KleinKitCFG",), **columns):
    """A run whose measures all differ from each other and from call to call; `columns` replace some."""
    values = 1.0 + np.random.RandomState(seed).rand(len(MEASURED), steps)
    calls = [
        {"step": i, "sigma": 1.0 - i / steps, "passes": 2, "blocks": 6, **dict(zip(MEASURED, values[:, i].tolist()))}
        for i in range(steps)
    ]
    for name, column in columns.items():
        for call, value in zip(calls, column, strict=True):
            call[name] = value
    return RunRecord("3", "p", list(guidance), [1, 128, 8, 8], [1.0 - i / steps for i in range(steps + 1)], calls)


def heights(axes, style):
    """The lines of a style in a panel: `[(x, y), …]`, in the order of the runs."""
    return [(line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_linestyle() == style]


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("count", [1, 3])
def test_every_panel_shows_its_own_numbers_under_its_own_title(count):
    runs = [record(seed) for seed in range(count)]
    panels = draw(runs).axes
    assert len(panels) == len(PANELS)
    for axes, (words, symbols, solid, dashed) in zip(panels, PANELS):
        title = axes.get_title()
        assert [word for word in words if word not in title.lower()] == []
        assert [symbol for symbol in symbols if symbol not in title] == []
        for style, name in (("-", solid), ("--", dashed)):
            drawn = heights(axes, style)
            assert len(drawn) == (count if name else 0)
            for (x, y), run in zip(drawn, runs):
                assert list(x) == [1, 2, 3, 4] and list(y) == [call[name] for call in run.calls]
        low, high = axes.get_ylim()
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        assert low <= values.min() < values.max() < high and texts(axes) == []
    assert [axes.get_xlabel() for axes in panels] == [""] * 3 + ["model call"] * 3


def test_runs_have_a_color_each_and_the_same_one_in_every_panel():
    colors = [
        [line.get_color() for line in axes.lines if line.get_linestyle() == "-"] for axes in draw([record(), record(1)]).axes
    ]
    assert all(np.array_equal(one, colors[0]) for one in colors) and not np.array_equal(*colors[0])


def test_a_call_without_a_value_is_a_gap_and_one_that_stands_alone_a_dot():
    [cosine] = heights(draw([record(cosine=[0.5, None, 0.7, None])]).axes[1], "-")
    np.testing.assert_array_equal(cosine[1], [0.5, np.nan, 0.7, np.nan])
    assert {line.get_marker() for axes in draw([record()]).axes for line in axes.lines} == {"."}


def test_what_was_never_measured_is_said():
    missing = dict.fromkeys(("cosine", "alpha", "uncond_norm"), [None] * 4)
    panels = draw([record(**missing)]).axes
    assert [texts(axes) for axes in panels] == [[], ["not measured"], ["not measured"], [], [], []]
    assert heights(panels[3], "--") == [] and len(heights(panels[3], "-")) == 1
    assert list(panels[1].get_yticks()) == []


def test_the_noise_of_float32_is_a_flat_line():
    panels = draw([record(cosine=[0.9, 0.9 + 1e-7, 0.9, 0.9], cfg=[4.0] * 4)]).axes
    low, high = panels[1].get_ylim()
    assert high - low > 0.004
    # A scale and a time begin at zero.
    assert panels[0].get_ylim()[0] == panels[5].get_ylim()[0] == 0.0


def test_a_scale_of_zero_has_a_range():
    low, high = draw([record(cfg=[0.0] * 4)]).axes[0].get_ylim()
    assert low == 0.0 < high


@pytest.mark.parametrize(
    "runs, heading",
    [
        ([record(milliseconds=[250.0] * 4)], "4 steps · 8 passes · 24 blocks · 1 s · CFG"),
        ([record(milliseconds=[250.0] * 4, blocks=[None] * 4)], "4 steps · 8 passes · 1 s · CFG"),
        (
            [record(milliseconds=[250.0] * 4, guidance=()), record(milliseconds=[0.5] * 4, guidance=())],
            "2 runs · 16 passes · 48 blocks · 1 s · no guidance nodes",
        ),
        (
            [record(milliseconds=[1.0] * 4, guidance=("KleinKitCFG", "KleinKitRenorm")), record(milliseconds=[1.0] * 4)],
            "2 runs · 16 passes · 48 blocks · 0.008 s · CFG, Renorm",
        ),
    ],
)
def test_the_heading_counts_all_runs(runs, heading):
    assert draw(runs)._suptitle.get_text() == heading


def legend(runs):
    return [text.get_text() for one in draw(runs).legends for text in one.get_texts()]


def test_the_legend_names_the_runs_where_there_are_several():
    assert legend([record()]) == []
    assert legend([record(cfg=[None, 1.0, 4.0, 1.0]), record(1, cfg=[2.5] * 4)]) == [
        "run 1: cfg 4, 8 passes",
        "run 2: cfg 2.5, 8 passes",
    ]


@pytest.mark.parametrize("count, every", [(12, 1), (13, 2), (25, 3), (256, 22)])
def test_the_legend_names_twelve_runs_at_most(count, every):
    numbers = [int(text.split(":")[0].removeprefix("run ")) for text in legend([record(i, steps=1) for i in range(count)])]
    assert numbers == list(range(1, count + 1, every))


@pytest.mark.parametrize("runs", [[record()], [record(i) for i in range(5)]], ids=["one run", "five"])
def test_the_picture_is_the_figure_and_no_text_is_cut_or_covered(runs):
    figure, pixels = draw(runs), plot(runs)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert pixels.dtype == np.uint8 and pixels.shape == (720, 1200, 3)
    assert np.array_equal(pixels, np.asarray(canvas.buffer_rgba())[..., :3])
    renderer = canvas.get_renderer()
    written = [figure._suptitle, *(axes.title for axes in figure.axes), *(axes.xaxis.label for axes in figure.axes[3:])]
    boxes = [text.get_window_extent(renderer) for text in written] + [axes.get_window_extent() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1200 and 0 <= box.y0 < box.y1 <= 720 for box in boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_changed_number_changes_the_pixels_of_its_panel_alone():
    """A measure that stays within its panel's range moves a line in that panel, and nothing else."""
    names = [name for _, _, name, _ in PANELS[:5]]
    before = dict.fromkeys(names, [1.0, 2.0, 1.2, 2.0])
    pixels, figure = plot([record(**before)]), draw([record(**before)])
    FigureCanvasAgg(figure).draw()
    for name, axes in zip(names, figure.axes):
        changed = (pixels != plot([record(**before | {name: [1.0, 2.0, 1.8, 2.0]})])).any(-1)
        box = axes.get_window_extent()
        rows, columns = changed.nonzero()
        assert len(rows) > 100
        assert box.x0 <= columns.min() and columns.max() <= box.x1
        assert box.y0 <= 720 - rows.max() and 720 - rows.min() <= box.y1


def test_text_is_readable_on_the_paper():
    figure = draw([record(), record(1)])
    assert to_rgb(figure.get_facecolor()) == pytest.approx(to_rgb("#f6f6f6"))
    written = [figure._suptitle, *(axes.title for axes in figure.axes), *figure.legends[0].get_texts()]
    assert {to_rgb(text.get_color()) for text in written} == {to_rgb("#181818")}
