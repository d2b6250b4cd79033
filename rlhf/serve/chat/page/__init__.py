"""The chat as a Gradio page: one `gr.HTML` component in the desk's look, whose script talks to /api/v1/chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from feedback_app.pages import desk

HERE = Path(__file__).parent
SCRIPTS = (Path(desk.HERE).parent / "render.js", HERE / "base.js", HERE / "answers.js", HERE / "chat.js")


def chat_blocks(title: str) -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.HTML(
            value="",
            html_template=_read(HERE / "chat.html"),
            js_on_load="\n".join(map(_read, SCRIPTS)),
            apply_default_css=False,
            elem_id="chat",
        )
    return blocks


def chat_mount_options() -> dict[str, Any]:
    """As the desk is mounted, with the chat's own style behind the desk's."""
    options = desk.mount_options()
    return {**options, "head": f"{options['head']}<style>{_read(HERE / 'chat.css')}</style>"}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
