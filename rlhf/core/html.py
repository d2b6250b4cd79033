"""Small helpers for self-contained HTML pages: no script, no external file, light and dark.

Functions take text and return HTML; what they take is escaped, except where the parameter is called `html`
or is the result of another function of this file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape as _escape
from typing import Any

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #636c76; --line: #d8dee4; --card: #f6f8fa;
  --page: #ffffff; --note: #fff8e1; --note-line: #e0b33a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #30363d;
  --card: #161b22; --page: #0d1117; --note: #2a2412; --note-line: #a8842c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 27px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 40px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
p { max-width: 76ch; margin: 8px 0; }
.lead, figcaption, .sub { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 23px; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.note { background: var(--note); border-left: 3px solid var(--note-line); padding: 10px 14px;
  border-radius: 4px; margin: 14px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(360px, 100%), 1fr)); gap: 18px; }
figure { margin: 0; min-width: 0; }
.figures > figure:only-child { max-width: 500px; }
summary { cursor: pointer; color: var(--soft); margin: 10px 0; }
figure svg, figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 13px; margin-top: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 10px 0; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 7px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px;
  overflow-x: auto; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
"""


def escape(value: Any) -> str:
    """Text for use anywhere in HTML, attribute values included."""
    return _escape(str(value), quote=True)


def page(title: str, sections: Iterable[tuple[str, str]], *, lead: str = "", footer: str = "") -> str:
    """One self-contained page. sections: (heading, html); an empty heading adds no line above the block."""
    body = []
    for heading, html in sections:
        title_html = f"<h2>{escape(heading)}</h2>\n" if heading else ""
        body.append(f"<section>{title_html}{html}</section>")
    lead_html = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    footer_html = f"<footer>{escape(footer)}</footer>" if footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{lead_html}\n"
        + "\n".join(body)
        + f"\n{footer_html}\n</main>\n</body>\n</html>\n"
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A table of dictionaries; columns default to the keys of the first row. Numbers are right-aligned."""
    if not rows:
        return "<p>none</p>"
    names = list(columns or rows[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in names)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{'' if value is None else 'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return f'<td class="number">{text}</td>'
    return f"<td>{escape(value).replace(chr(10), '<br>')}</td>"


def figure(picture: bytes, caption: str, alt: str = "") -> str:
    """An SVG (put into the page itself) or PNG (as a data URL) with its caption.

    alt: what the picture shows, for those who do not see it; the caption where there is none.
    """
    label = escape(alt or caption)
    if picture.startswith(b"\x89PNG"):
        data = base64.b64encode(picture).decode("ascii")
        image = f'<img alt="{label}" src="data:image/png;base64,{data}">'
    else:
        svg = picture.decode("utf-8")
        svg = svg[svg.index("<svg") :]
        image = re.sub(r"^<svg", lambda _: f'<svg role="img" aria-label="{label}"', svg)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(html: Iterable[str]) -> str:
    """Figures side by side where the page is wide enough."""
    return f'<div class="figures">{"".join(html)}</div>'


def cards(items: Iterable[tuple[str, str]]) -> str:
    """Headline figures: (value, what it is)."""
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for value, label in items
        )
        + "</div>"
    )


def folded(summary: str, html: str) -> str:
    """Something that is shown when its one-line summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def note(text: str) -> str:
    """A box that nobody overlooks, such as what in a report is simulated."""
    return f'<div class="note">{escape(text)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
