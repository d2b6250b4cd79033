"""The leads' dashboards as a Gradio page: one `gr.HTML` component whose script talks to /api/v1/lead.

It looks like the desk and is mounted like it. The page itself holds no data: everything comes from calls that
check the role, so that nothing leaks to somebody who only gets hold of the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request

from feedback_app.accounts import Person
from feedback_app.pages.desk import mount_options
from feedback_app.security import PERSON
from feedback_app.store.projects import SEES_EVERYTHING

HERE = Path(__file__).parent
SCRIPTS = ("../render.js", "charts.js", "forms.js", "lead.js")


def lead_blocks() -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="rating desk: leads", analytics_enabled=False) as blocks:
        gr.HTML(
            value="",
            html_template=_read("lead.html"),
            js_on_load="\n".join(map(_read, SCRIPTS)),
            apply_default_css=False,
            elem_id="lead",
        )
    return blocks


def lead_mount_options() -> dict[str, Any]:
    """As the desk is mounted, with the dashboards' own style behind the desk's."""
    return {**mount_options(), "css": _read("lead.css")}


def lead_only(request: Request) -> str | None:
    """Gradio's own check, behind the gate's: only leads and administrators; not async, as on the desk."""
    person = request.scope.get(PERSON)
    if isinstance(person, Person) and person.role in SEES_EVERYTHING:
        return person.annotator_id
    return None


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
