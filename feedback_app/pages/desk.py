"""The rating desk as a Gradio page.

One `gr.HTML` component holds the whole desk: its markup, style and script are the files beside this one, and
the script talks to /api/v1/desk, so that no answer ever waits in Gradio's event queue and every call checks
the session. Nothing about models is in the page: it gets the texts of two sides and a lease.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent
SYSTEM_FONTS = ("Inter", "ui-sans-serif", "system-ui", "sans-serif")


def desk_blocks() -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="rating desk", analytics_enabled=False) as blocks:
        gr.HTML(
            value="",
            html_template=(HERE / "desk.html").read_text(encoding="utf-8"),
            js_on_load=joined("render.js", "desk.js"),
            apply_default_css=False,
            elem_id="desk",
        )
    return blocks


def joined(*names: str) -> str:
    """Files of this folder, one after the other."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def mount_options() -> dict[str, Any]:
    """How the page is mounted: our style, system fonts, no history, no footer, no error details."""
    return {
        "theme": gr.themes.Base(font=list(SYSTEM_FONTS), font_mono=["ui-monospace", "monospace"]),
        "css": joined("desk.css", "render.css"),
        "head": '<link rel="icon" href="/static/icon.svg" type="image/svg+xml">',
        "footer_links": [],
        "run_history": False,
        "show_error": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "ssr_mode": False,
    }
