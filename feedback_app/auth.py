"""`rlhf users`: who may rate. The rules for passwords and sessions are in `accounts`."""

from __future__ import annotations

import sys
import time

from feedback_app.accounts import (
    Account,
    Role,
    create_annotator,
    create_link,
    find_account,
    list_accounts,
    set_disabled,
    set_password,
)
from feedback_app.config import UsersConfig
from feedback_app.store.engine import Store
from feedback_app.tokens import Token, create_token, list_tokens, revoke_token, token_id_of
from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch

__all__ = ["Role", "create_annotator", "run"]


def run(settings: UsersConfig, launch: Launch) -> None:
    """Add, disable, enable, list, or give somebody a new password link."""
    with Store.open(launch.db) as store:
        if settings.action == "list":
            _print_accounts(list_accounts(store))
        elif settings.action == "add":
            annotator_id = create_annotator(
                store, settings.name, password=_password(settings), role=settings.role
            )
            print(f"added {settings.role} '{settings.name}'")
            _offer_link(store, settings, annotator_id)
        elif settings.action == "password":
            account = find_account(store, settings.name)
            password = _password(settings)
            if password is not None:
                set_password(store, account.annotator_id, password)
                print(f"'{account.name}' has a new password and is logged out everywhere")
            _offer_link(store, settings, account.annotator_id)
        elif settings.action == "token":
            _make_token(store, settings)
        elif settings.action == "tokens":
            account_id = find_account(store, settings.name).annotator_id if settings.name.strip() else None
            _print_tokens(list_tokens(store, account_id))
        elif settings.action == "revoke-token":
            revoke_token(store, settings.name.strip())
            print(f"token {settings.name.strip()} no longer works")
        else:
            account = find_account(store, settings.name)
            set_disabled(store, account.annotator_id, settings.action == "disable")
            state = "disabled and logged out" if settings.action == "disable" else "enabled"
            print(f"'{account.name}' is {state}; their ratings are kept")


def _password(settings: UsersConfig) -> str | None:
    if not settings.password_stdin:
        return None
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ConfigError("--password-stdin: found no password on standard input; expected one line")
    return password


def _offer_link(store: Store, settings: UsersConfig, annotator_id: str) -> None:
    if not settings.password_stdin:
        token = create_link(store, annotator_id)
        print(f"one-time link, valid for 72 hours: {settings.base_url.rstrip('/')}/welcome/{token}")


def _make_token(store: Store, settings: UsersConfig) -> None:
    account = find_account(store, settings.name)
    token = create_token(
        store,
        account.annotator_id,
        scopes=settings.scopes,
        expires_days=settings.expires_days,
        label=settings.label,
    )
    print(f"token {token_id_of(token)} of '{account.name}' ({account.role}) for {', '.join(settings.scopes)}")
    print(f"shown only now: {token}")


def _print_tokens(tokens: list[Token]) -> None:
    if not tokens:
        print("no tokens; `rlhf users token NAME --scopes read` makes one")
    now = time.time()
    for token in tokens:
        ended = token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now)
        facts = [
            "ended" if ended else f"until {_day(token.expires_at, 'revoked')}",
            f"last used {_day(token.last_used_at, 'never')}",
        ]
        line = f"{token.token_id}  {token.name}  {','.join(token.scopes)}  {', '.join(facts)}  {token.label}"
        print(line.rstrip())


def _day(when: float | None, otherwise: str) -> str:
    return otherwise if when is None else time.strftime("%Y-%m-%d", time.localtime(when))


def _print_accounts(accounts: list[Account]) -> None:
    if not accounts:
        print("no accounts yet; `rlhf app` makes the first administrator, `rlhf users add NAME` adds raters")
        return
    width = max(len(account.name) for account in accounts)
    for account in accounts:
        notes = [
            note
            for note, holds in (
                ("simulated", account.simulated),
                ("disabled", account.disabled),
                ("no password yet", not account.has_password and not account.simulated),
            )
            if holds
        ]
        print(f"{account.name:<{width}}  {account.role:<9}  {', '.join(notes)}".rstrip())
