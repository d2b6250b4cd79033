"""Pictures from numbers, as SVG that reads on light and dark pages; matplotlib's Agg/SVG backends only.

Every function returns the bytes of one SVG (transparent background, text kept as text) or, with
`image="png"`, of one PNG. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rlhf.core.stats import calibration_bins, expected_calibration_error

Image = Literal["svg", "png"]
Numbers = Sequence[float | None]
Series = Mapping[str, tuple[Numbers, Numbers]]

INK = "#7d8590"  # text and axes: readable on white and on near-black
DARK = "#23292f"  # text on white
GRID = "#7d859033"
PALETTE = ("#3d7eca", "#e0803a", "#3a9d6e", "#a86bc4", "#cf5062", "#8a8f3a")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def line_plot(
    series: Series,
    title: str,
    xlabel: str,
    ylabel: str,
    bands: Mapping[str, tuple[Numbers, Numbers, Numbers]] | None = None,
    *,
    image: Image = "svg",
) -> bytes:
    """Lines of name -> (xs, ys); None and NaN break a line. bands: name -> (xs, lows, highs), shaded."""

    def draw(axes: Axes) -> None:
        for color, (name, (xs, ys)) in zip(_colors(series), series.items(), strict=True):
            few = len(xs) <= 30
            axes.plot(
                _floats(xs), _floats(ys), color=color, label=name, marker="o" if few else "", markersize=3.5
            )
            if bands and name in bands:
                band_xs, lows, highs = bands[name]
                axes.fill_between(
                    _floats(band_xs), _floats(lows), _floats(highs), color=color, alpha=0.18, lw=0
                )
        # Steps and epochs are counted: no tick at epoch 1.4.
        if all(isinstance(x, int) for xs, _ in series.values() for x in xs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, series)

    return _picture(draw, title, xlabel, ylabel, image)


def scatter_plot(
    series: Series, title: str, xlabel: str, ylabel: str, *, connect: bool = False, image: Image = "svg"
) -> bytes:
    """Points of name -> (xs, ys); `connect` draws the path through them in the order given."""

    def draw(axes: Axes) -> None:
        for color, (name, (xs, ys)) in zip(_colors(series), series.items(), strict=True):
            points_x, points_y = _floats(xs), _floats(ys)
            if connect:
                axes.plot(points_x, points_y, color=color, alpha=0.35, linewidth=1)
            axes.scatter(points_x, points_y, color=color, s=18, alpha=0.85, linewidths=0, label=name)
        _legend(axes, series)

    return _picture(draw, title, xlabel, ylabel, image)


def bar_plot(
    values: Mapping[str, float],
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    reference: tuple[str, float] | None = None,
    image: Image = "svg",
) -> bytes:
    """One bar per name, with (low, high) whiskers; reference: (label, height) of a dashed line."""

    def draw(axes: Axes) -> None:
        names = list(values)
        heights = [values[name] for name in names]
        axes.bar(range(len(names)), heights, color=_colors(values), width=0.55, alpha=0.9)
        for x, (name, height) in enumerate(values.items()):
            low, high = (intervals or {}).get(name, (height, height))
            if low != high:
                axes.vlines(x, low, high, color=INK, linewidth=1.6)
            axes.annotate(
                f"{height:.3g}", (x, max(height, high)), (0, 4), textcoords="offset points", ha="center"
            )
        if reference is not None:
            axes.axhline(reference[1], color=INK, linestyle=(0, (4, 3)), linewidth=1, label=reference[0])
            axes.legend()
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)

    return _picture(draw, title, xlabel, ylabel, image)


@dataclass(frozen=True)
class Row:
    """One line of an interval plot. faint: shown, but not to be read as a result (few values)."""

    label: str
    mean: float
    low: float
    high: float
    group: str = ""
    faint: bool = False


def interval_plot(
    rows: Sequence[Row],
    title: str,
    xlabel: str,
    *,
    reference: tuple[str, float] | None = None,
    band: tuple[float, float] | None = None,
    image: Image = "svg",
) -> bytes:
    """A dot with its interval per row, first row on top; the groups take turns in colour.

    reference: (label, x) of a dashed vertical line, named below the axis, where it can hide nothing; band: its own
    interval, shaded. The picture grows with the rows.
    """

    def draw(axes: Axes) -> None:
        groups = list(dict.fromkeys(row.group for row in rows))
        colors = dict(zip(groups, _colors(groups), strict=True))
        if band is not None:
            axes.axvspan(*band, color=INK, alpha=0.12, linewidth=0)
        for y, row in enumerate(rows):
            color, alpha = colors[row.group], 0.4 if row.faint else 1.0
            axes.hlines(y, row.low, row.high, color=color, linewidth=2, alpha=alpha)
            axes.plot(row.mean, y, "o", color=color, markersize=5.5, alpha=alpha)
        if reference is not None:
            axes.axvline(reference[1], color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)

    below = xlabel if reference is None else f"{xlabel} (dashed: {reference[0]})"
    # From the right, so that a label longer than the axes runs under the names and not out of the picture.
    size = (4.7, 0.95 + 0.26 * len(rows))
    return _picture(draw, title, below, "", image, size=size, xlabel_at="right")


def reliability_plot(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    title: str,
    *,
    num_bins: int = 10,
    image: Image = "svg",
) -> bytes:
    """Predicted probability against how often it came true, one dot per bin, its area the bin's size."""
    bins = calibration_bins(probabilities, outcomes, num_bins)
    error = expected_calibration_error(probabilities, outcomes, num_bins)

    def draw(axes: Axes) -> None:
        largest = max(b.size for b in bins)
        axes.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=1, label="perfect")
        axes.plot([b.confidence for b in bins], [b.frequency for b in bins], color=PALETTE[0], alpha=0.5)
        axes.scatter(
            [b.confidence for b in bins],
            [b.frequency for b in bins],
            s=[16 + 120 * b.size / largest for b in bins],
            color=PALETTE[0],
            linewidths=0,
            label=f"measured, ECE {error:.3f}",
        )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="upper left")

    return _picture(draw, title, "predicted probability", "observed frequency", image)


def matrix_plot(
    rows: Sequence[Sequence[int]], names: Sequence[str], title: str, xlabel: str, ylabel: str
) -> bytes:
    """A square table of counts, each cell shaded by its share of the row; the number stands in it."""

    def draw(axes: Axes) -> None:
        for y, row in enumerate(rows):
            total = max(1, sum(row))
            for x, count in enumerate(row):
                color = PALETTE[2] if x == y else PALETTE[4]
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, color=color, alpha=0.9 * count / total, linewidth=0)
                )
                if count:
                    # white where the cell is dark on any page, else the ink that reads on both
                    look: dict[str, Any] = {"color": INK}
                    if count > total / 2:
                        look = {"color": "white", "weight": "bold"}
                    axes.annotate(
                        str(count), (x, y), ha="center", va="center", fontsize=9 if size < 12 else 6, **look
                    )
        axes.set_xticks(range(size), names, rotation=90 if size > 5 or longest > 9 else 0)
        axes.set_yticks(range(size), names)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)

    size, longest = len(names), max(map(len, names))
    side = min(7.0, 2.2 + 0.42 * size)
    return _picture(draw, title, xlabel, ylabel, "svg", size=(side + 0.06 * min(longest, 20), side))


@dataclass(frozen=True)
class Curve:
    """One line of a panel, of which missing values (None, NaN) are left out.

    dots: measured now and then, so every point is marked. right: on an axis of its own, dashed. smooth: a rolling
    mean over the raw values, which stay visible behind it, where there are many of them.
    """

    label: str
    xs: Sequence[int]
    ys: Numbers
    color: str
    dots: bool = False
    right: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class Panel:
    """levels: (label, height, colour) of horizontal lines. crosses: xs marked with a red cross, above."""

    title: str
    ylabel: str
    curves: Sequence[Curve]
    right_label: str = ""
    levels: Sequence[tuple[str, float, str]] = ()
    crosses: Sequence[int] = ()


def panel_grid(
    panels: Sequence[Panel],
    title: str,
    subtitle: str,
    xlabel: str,
    *,
    mark: int | None = None,
    columns: int = 3,
    image: Image = "png",
) -> bytes:
    """Many small pictures over one x axis, on white. mark: x of a vertical line through all of them."""
    rows = math.ceil(len(panels) / columns)
    style = _STYLE | {"text.color": DARK, "axes.titlecolor": DARK, "axes.labelcolor": "#59616b"}
    with matplotlib.rc_context({**style, "svg.hashsalt": title, "axes.edgecolor": "#c3c8ce"}):
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1)
        figure = Figure(figsize=(4.5 * columns, 2.85 * rows + 0.75), layout=layout, facecolor="white")
        figure.suptitle(f"{title}\n", x=0.008, ha="left", fontsize=14, fontweight="bold")
        figure.text(
            0.008, 1 - 0.5 / figure.get_figheight(), subtitle, fontsize=10, color="#59616b", va="center"
        )
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for axes, panel in zip_longest(grid, panels):
            if panel is None:
                axes.set_visible(False)
                continue
            _draw_panel(axes, panel, mark)
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if image == "svg" else {"Software": None}
        figure.savefig(buffer, format=image, facecolor="white", dpi=110, metadata=metadata)
        return buffer.getvalue()


def _draw_panel(axes: Axes, panel: Panel, mark: int | None) -> None:
    right = axes.twinx() if any(curve.right for curve in panel.curves) else None
    handles: list[Any] = []
    for curve in panel.curves:
        where = axes if right is None or not curve.right else right
        points = [(x, y) for x, y in zip(curve.xs, _floats(curve.ys), strict=True) if math.isfinite(y)]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        look: dict[str, Any] = {"marker": "o", "markersize": 4} if curve.dots or len(ys) < 3 else {}
        window = len(ys) // 20
        if curve.smooth and window > 1:
            if where is axes:
                where.plot(xs, ys, color=curve.color, alpha=0.25, linewidth=0.9)
            ys = rolling_mean(ys, window)
        line = "-" if where is axes else "--"
        handles += where.plot(xs, ys, line, color=curve.color, label=curve.label, linewidth=1.7, **look)
        if where is not axes:
            where.set_ylabel(panel.right_label, color=curve.color)
    for label, height, color in panel.levels:
        handles.append(axes.axhline(height, color=color, linestyle=(0, (2, 2)), linewidth=1.2, label=label))
    if mark is not None:
        axes.axvline(mark, color=DARK, linewidth=1, alpha=0.5, linestyle=(0, (6, 3)))
    if panel.crosses:
        look = {"color": PALETTE[4], "markeredgewidth": 2, "transform": axes.get_xaxis_transform()}
        handles += axes.plot(panel.crosses, [0.96] * len(panel.crosses), "x", label="alarm", **look)
    axes.set_title(panel.title, pad=22)
    axes.set_ylabel(panel.ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    if right is not None:
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        right.margins(y=0.12)
    if len(handles) > 1:
        # Above the axes, in one row: nowhere does it hide a curve.
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.015, 0.985), "borderaxespad": 0.2}
        legend = axes.legend(
            handles=handles,
            ncols=len(handles),
            fontsize=8.5,
            labelcolor="#59616b",
            handlelength=1.4,
            columnspacing=1.1,
            handletextpad=0.45,
            **place,
        )
        legend.set_in_layout(False)


def rolling_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of at most `window` values on either side of each."""
    means = []
    for place in range(len(values)):
        near = values[max(0, place - window) : place + window + 1]
        means.append(sum(near) / len(near))
    return means


def _picture(
    draw: Any,
    title: str,
    xlabel: str,
    ylabel: str,
    image: Image,
    *,
    size: tuple[float, float] = (5.6, 3.3),
    xlabel_at: Literal["center", "right"] = "center",
) -> bytes:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.set_xlabel(xlabel, loc=xlabel_at)
        axes.set_ylabel(ylabel)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if image == "svg" else {"Software": None}
        figure.savefig(buffer, format=image, transparent=True, dpi=160, metadata=metadata)
        return buffer.getvalue()


def _colors(names: Any) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(names))]


def _floats(values: Numbers) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _legend(axes: Axes, series: Series) -> None:
    if len(series) > 1:
        axes.legend()
