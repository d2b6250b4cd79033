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
from feedback_app.sessions import Visit, end_sessions, list_sessions
from feedback_app.store.engine import Store
from feedback_app.store.erasure import erase_account, erase_ratings
from feedback_app.tokens import Token, create_token, list_tokens, revoke_token, token_id_of
from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch

__all__ = ["Role", "create_annotator", "run"]


def run(settings: UsersConfig, launch: Launch) -> None:
    """Do what `rlhf users ACTION` says."""
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
        elif settings.action == "sessions":
            person = find_account(store, settings.name).annotator_id if settings.name.strip() else None
            _print_sessions(list_sessions(store, person))
        elif settings.action == "revoke":
            account = find_account(store, settings.name)
            num_ended = end_sessions(store, account.annotator_id)
            print(
                f"'{account.name}' is logged out everywhere ({num_ended} sessions); the password still works"
            )
        elif settings.action == "erase":
            _erase(store, settings)
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


def _erase(store: Store, settings: UsersConfig) -> None:
    account = find_account(store, settings.name)
    what = "the account and all its ratings and words" if settings.account else "all ratings and words"
    if not settings.yes:
        raise ConfigError(f"this erases {what} of '{account.name}' for good; give --yes to do it")
    erase = erase_account if settings.account else erase_ratings
    done = erase(store, account.name, requested_by="system", reason=settings.reason)
    print(f"erased {what} of '{account.name}': {done.num_answers} answers, {done.num_texts} texts")
    for held in done.snapshots:
        print(
            f"  snapshot {held.snapshot_id} of '{held.project}' holds {held.num_members} of them: {held.path}"
        )
    for learned in done.artifacts:
        print(f"  {learned.stage} {learned.artifact_id} learned from such a snapshot: {learned.path}")
    print("copies outside of the store (snapshots, runs, backups) are not touched")


def _print_sessions(visits: list[Visit]) -> None:
    if not visits:
        print("nobody is logged in")
        return
    width = max(len(visit.name) for visit in visits)
    for visit in visits:
        since, seen, end = (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))
            for moment in (visit.created_at, visit.last_seen_at, visit.expires_at)
        )
        where = f"{visit.address}  {visit.user_agent[:60]}".rstrip()
        print(f"{visit.name:<{width}}  since {since}, seen {seen}, ends {end} UTC  {where}")


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
