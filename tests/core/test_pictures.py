"""Plots and pages: the numbers are in them, text is escaped, nothing is fetched."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from rlhf.core.html import cards, escape, figure, figures, note, page, table
from rlhf.core.plots import (
    PALETTE,
    Curve,
    Panel,
    bar_plot,
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
    assert table([]) == "<p>none</p>"


@pytest.mark.parametrize("value", [1, 0.5, "a\nb"])
def test_cells(value: object) -> None:
    html = table([{"a": value}])
    assert ('class="number"' in html) == (not isinstance(value, str))
    assert ("a<br>b" in html) == isinstance(value, str)
