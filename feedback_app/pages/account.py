"""Log in, log out, and the one-time link: plain HTML without a script, so that nothing can go wrong in it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from feedback_app.accounts import MIN_PASSWORD, SESSION_S, Throttled, link_owner, log_in, log_out, use_link
from feedback_app.addresses import client_address
from feedback_app.security import cookie_name
from feedback_app.store.engine import Store
from rlhf.core.errors import RlhfError

FRAME = Template((Path(__file__).parent / "account.html").read_text(encoding="utf-8"))
WRONG = "Name and password do not fit together."


def account_router(store: Store, *, secure: bool, trusted_proxy: bool) -> APIRouter:
    """/login, /logout and /welcome/TOKEN."""
    router = APIRouter(include_in_schema=False)
    cookie = cookie_name(secure)

    @router.get("/login")
    def login_page(next: str = "/desk/") -> Response:
        return _page("Log in", _login_form("", next))

    @router.post("/login")
    def login(
        request: Request,
        name: Annotated[str, Form(max_length=256)],
        password: Annotated[str, Form(max_length=4096)],
        next: Annotated[str, Form(max_length=512)] = "/desk/",
    ) -> Response:
        address = client_address(request, trusted_proxy)
        agent = request.headers.get("user-agent", "")
        try:
            token = log_in(store, name, password, address=address, user_agent=agent)
        except Throttled as error:
            text = str(error)
            return _page("Log in", _login_form(name, next, text[0].upper() + text[1:] + "."), 429)
        if token is None:
            return _page("Log in", _login_form(name, next, WRONG), 401)
        log_out(store, request.cookies.get(cookie))  # a session that was there before ends with the new one
        response = RedirectResponse(_local(next), 303)
        response.set_cookie(
            cookie, token, max_age=int(SESSION_S), httponly=True, samesite="lax", secure=secure, path="/"
        )
        return response

    @router.post("/logout")
    def logout(request: Request) -> Response:
        log_out(store, request.cookies.get(cookie))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(cookie, httponly=True, samesite="lax", secure=secure, path="/")
        return response

    @router.get("/welcome/{token}")
    def welcome_page(token: str) -> Response:
        name = link_owner(store, token)
        if name is None:
            return _page("This link has ended", _ended(), 410)
        return _page("Welcome", _welcome_form(name))

    @router.post("/welcome/{token}")
    def welcome(
        token: str,
        password: Annotated[str, Form(max_length=4096)],
        again: Annotated[str, Form(max_length=4096)],
    ) -> Response:
        name = link_owner(store, token)
        if name is None:
            return _page("This link has ended", _ended(), 410)
        if password != again:
            return _page("Welcome", _welcome_form(name, "The two passwords differ."), 400)
        try:
            use_link(store, token, password)
        except RlhfError as error:
            text = str(error)
            return _page("Welcome", _welcome_form(name, text[0].upper() + text[1:] + "."), 400)
        return _page("Log in", _login_form(name, "/desk/", notice="Your password is set. Log in with it."))

    return router


def _local(path: str) -> str:
    """Only a path on this site: `//evil` and `/\\evil` would leave it."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if inside else "/desk/"


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(FRAME.substitute(title=escape(title), body=body), status)


def _login_form(name: str, next_path: str, problem: str = "", notice: str = "") -> str:
    focus = ("", " autofocus") if name else (" autofocus", "")
    return f"""
<h1>Log in</h1>
<p class="lead">to the rating desk</p>
{_alert(problem, notice)}
<form method="post" action="/login">
  <input type="hidden" name="next" value="{escape(_local(next_path))}">
  <label for="name">Name</label>
  <input id="name" name="name" value="{escape(name[:128])}" autocomplete="username" required{focus[0]}>
  <label for="password">Password</label>
  <input id="password" name="password" type="password" autocomplete="current-password" required{focus[1]}>
  <button type="submit">Log in</button>
</form>
<p class="hint">No account, or forgotten the password? Whoever runs this desk can send you a one-time link.</p>"""


def _welcome_form(name: str, problem: str = "") -> str:
    return f"""
<h1>Welcome, {escape(name)}</h1>
<p class="lead">Choose a password for the rating desk.</p>
{_alert(problem, "")}
<form method="post">
  <input type="hidden" name="name" value="{escape(name)}" autocomplete="username">
  <label for="password">Password <span>at least {MIN_PASSWORD} characters</span></label>
  <input id="password" name="password" type="password" minlength="{MIN_PASSWORD}"
    autocomplete="new-password" required autofocus>
  <label for="again">Once more</label>
  <input id="again" name="again" type="password" minlength="{MIN_PASSWORD}"
    autocomplete="new-password" required>
  <button type="submit">Set password</button>
</form>"""


def _ended() -> str:
    return """
<h1>This link has ended</h1>
<p class="lead">It was used already, or its 72 hours are over.</p>
<p class="hint">Whoever runs this desk can make a new one with <code>rlhf users password NAME</code>.</p>
<p><a href="/login">Log in</a></p>"""


def _alert(problem: str, notice: str) -> str:
    if problem:
        return f'<p class="alert" role="alert">{escape(problem)}</p>'
    return f'<p class="notice" role="status">{escape(notice)}</p>' if notice else ""
