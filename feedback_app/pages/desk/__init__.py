"""The rating desk as a Gradio page.

One `gr.HTML` component holds the whole desk: its markup, style and script are the files beside this one, each
with one idea, joined here in order; the script talks to /api/v1/desk, so that no answer ever waits in Gradio's
event queue and every call checks the session. Nothing about models is in the page: it gets texts and a lease.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent
SYSTEM_FONTS = ("Inter", "ui-sans-serif", "system-ui", "sans-serif")
# One scope, in this order: what a file uses while it is read must come before it.
SCRIPTS = (
    "../render.js",
    "state.js",
    "net.js",
    "clock.js",
    "words.js",
    "dragging.js",
    "pairwise.js",
    "ranking.js",
    "scores.js",
    "writing.js",
    "thumbs.js",
    "remarks.js",
    "gold.js",
    "history.js",
    "figures.js",
    "flow.js",
    "keys.js",
    "start.js",
)
STYLES = ("base.css", "../render.css", "kinds.css", "aside.css", "phone.css")


def desk_blocks() -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="rating desk", analytics_enabled=False) as blocks:
        gr.HTML(
            value="",
            html_template=_joined(("desk.html",)),
            js_on_load=_joined(SCRIPTS),
            apply_default_css=False,
            elem_id="desk",
        )
    return blocks


def mount_options() -> dict[str, Any]:
    """How the page is mounted: our style, system fonts, no history, no footer, no error details."""
    return {
        "theme": gr.themes.Base(font=list(SYSTEM_FONTS), font_mono=["ui-monospace", "monospace"]),
        # Not through `css`: Gradio puts a prefix behind each comma, which mangles :is(a, b) and dark rules.
        "head": f'<link rel="icon" href="/static/icon.svg" type="image/svg+xml"><style>{_joined(STYLES)}</style>',
        "footer_links": [],
        "run_history": False,
        "show_error": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "ssr_mode": False,
    }


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
