"""Plots and pages: the numbers are in them, text is escaped, nothing is fetched."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from rlhf.core.html import cards, escape, figure, figures, folded, note, page, table
from rlhf.core.plots import (
    PALETTE,
    Curve,
    Panel,
    Row,
    bar_plot,
    interval_plot,
    line_plot,
    panel_grid,
    reliability_plot,
    rolling_mean,
    scatter_plot,
)

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def markers(svg: bytes) -> int:
    """Points drawn in the first colour of the palette."""
    return len(re.findall(rf"<use [^>]*fill: {PALETTE[0]}", svg.decode()))


def test_line_plot_has_its_words_and_breaks_at_missing_values() -> None:
    whole = line_plot({"policy": ([0, 1, 2, 3], [1.0, 2.0, 3.0, 2.0])}, "Reward", "step", "score")
    assert {"Reward", "step", "score"} <= set(texts(whole))
    holed = line_plot({"policy": ([0, 1, 2, 3], [1.0, None, 3.0, float("nan")])}, "Reward", "step", "score")
    assert (markers(whole), markers(holed)) == (4, 2)
    two = line_plot(
        {"a": ([0, 1], [1, 2]), "b": ([0, 1], [2, 1])}, "t", "x", "y", {"a": ([0, 1], [0, 1], [2, 3])}
    )
    assert {"a", "b"} <= set(texts(two))


def test_bar_plot_labels_its_heights() -> None:
    svg = bar_plot(
        {"before": 0.5, "after": 0.815},
        "Win rate",
        "",
        "rate",
        intervals={"after": (0.7, 0.9)},
        reference=("chance", 0.5),
    )
    assert {"before", "after", "0.815", "chance"} <= set(texts(svg))


def test_interval_plot_has_a_row_for_each_and_grows_with_them() -> None:
    rows = [Row("web", 0.6, 0.5, 0.7, "source"), Row("mail", 0.8, 0.7, 0.9, "source", faint=True)]
    few = interval_plot(rows, "Slices", "accuracy", reference=("all", 0.7), band=(0.65, 0.75))
    assert {"Slices", "web", "mail", "accuracy (dashed: all)"} <= set(texts(few))
    assert markers(few) == 2
    assert b"opacity: 0.4" in few
    assert b"opacity: 0.4" not in interval_plot(rows[:1], "Slices", "accuracy")
    many = interval_plot(rows * 10, "Slices", "accuracy")
    heights = [float(ElementTree.fromstring(svg).attrib["height"].removesuffix("pt")) for svg in (few, many)]
    assert heights[1] - heights[0] == pytest.approx(18 * 0.26 * 72, abs=1)


def test_reliability_plot_shows_its_error() -> None:
    # one bin: confidence 0.9, frequency 0.5
    assert "measured, ECE 0.400" in texts(reliability_plot([0.9, 0.9], [1, 0], "Calibration"))


def test_a_grid_of_panels_has_all_its_words_and_only_measured_points() -> None:
    curves = [
        Curve("here", [1, 2, 3, 4], [1.0, None, 3.0, float("nan")], PALETTE[0], dots=True),
        Curve("there", [1, 2, 3], [5.0, 6.0, 7.0], PALETTE[1], right=True),
    ]
    panels = [
        Panel("First", "left", curves, "right", levels=[("target", 2.0, PALETTE[4])], crosses=[3]),
        Panel("Second", "alone", curves[:1]),
    ]

    def draw() -> bytes:
        return panel_grid(panels, "Title", "below it", "step", mark=2, columns=3, image="svg")

    svg = draw()
    words = {
        "Title",
        "below it",
        "First",
        "left",
        "right",
        "here",
        "there",
        "target",
        "alarm",
        "Second",
        "step",
    }
    assert words <= {text.strip() for text in texts(svg)}
    assert markers(svg) == 2 * 2 + 1  # two points in two panels, and one in the legend
    assert svg == draw()


def test_a_rolling_mean_looks_to_both_sides() -> None:
    assert rolling_mean([0.0, 3.0, 6.0, 0.0], 1) == [1.5, 3.0, 3.0, 3.0]


def test_pictures_are_reproducible_and_png_works() -> None:
    def draw(**options: str) -> bytes:
        return scatter_plot({"ppo": ([0, 1], [1, 2])}, "t", "x", "y", connect=True, **options)  # type: ignore[arg-type]

    assert draw() == draw()
    assert draw(image="png").startswith(b"\x89PNG")


def test_a_page_is_self_contained_and_escapes_what_people_wrote() -> None:
    evil = '<script>alert("x")</script>'
    picture = line_plot({"a": ([0, 1], [0, 1])}, evil, "x", "y")
    html = page(
        evil,
        [
            (evil, table([{evil: evil, "n": 1.23456, "ok": True, "none": None}])),
            ("", cards([(evil, evil)]) + note(evil) + figures([figure(picture, evil)])),
            ("", folded(evil, figure(picture, "caption", alt=evil))),
        ],
        lead=evil,
        footer=evil,
    )
    assert "<script" not in html
    assert escape(evil) in html
    assert "1.235" in html
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert not re.search(r"url\((?!#)|@import", html)


def test_a_png_is_embedded_and_an_empty_table_says_so() -> None:
    picture = scatter_plot({"a": ([0], [0])}, "t", "x", "y", image="png")
    assert 'src="data:image/png;base64,' in figure(picture, "caption")
    assert f'alt="{escape("a < b")}"' in figure(picture, "caption", alt="a < b")
    assert table([]) == "<p>none</p>"


def test_the_label_of_a_picture_is_its_text_or_else_its_caption() -> None:
    picture = line_plot({"a": ([0, 1], [0, 1])}, "t", "x", "y")
    assert 'aria-label="caption"' in figure(picture, "caption")
    # what looks like a reference of a regular expression stays what it is
    assert r'aria-label="\1 of 2"' in figure(picture, "caption", alt=r"\1 of 2")


@pytest.mark.parametrize("value", [1, 0.5, "a\nb"])
def test_cells(value: object) -> None:
    html = table([{"a": value}])
    assert ('class="number"' in html) == (not isinstance(value, str))
    assert ("a<br>b" in html) == isinstance(value, str)
