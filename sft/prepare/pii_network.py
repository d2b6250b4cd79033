"""Email and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]

_EMAIL = re.compile(
    r"(?<![\w.+%/@-])"
    r"[\w][\w.+%'-]{0,63}"
    r"@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}"
    r"([^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})"
    r"(?![\w@-])(?!\.\w)"
)
# 'icon@2x.png' is a file, 'git@host.org:path' a remote
_FILE_ENDINGS = re.compile(
    r"png|jpe?g|gif|svg|webp|ico|css|[jt]sx?|py|rs|go|rb|cpp|html?|xml|ya?ml|json|toml|lock|txt|md|csv|pdf|zip|gz|tar|"
    r"mp[34]|mov",
    re.IGNORECASE,
)

_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d|-\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]{3,39}(?:\d\.\d{1,3}\.\d{1,3}\.\d{1,3})?(?![\w:])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bver\.?|\bversions?|\breleases?|\bbuild|\bfirmware|\bsdk|\bdriver|\bsections?|\bchapter|\bclause|§|"
    r"\bpatch|\bupgrade[sd]? (?:to|from)|\bupdate[sd]? (?:to|from)|\brev\.?|\bparagraph|\barticle|\bfigure|\btable|"
    r"==|\^|~|>=|<=)[\s:#]*$",
    re.IGNORECASE,
)
_CONTEXT_CHARS = 24


def emails(text: str) -> Iterator[Span]:
    """Addresses with a top-level domain; not remotes of git, nor names of files."""
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if _FILE_ENDINGS.fullmatch(match.group(1)):
            continue
        if match.group().startswith("git@") and text[match.end() : match.end() + 1] in (":", "/"):
            continue
        yield match.span()


def ip_addresses(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses that belong to somebody: no loopback, unspecified address or netmask, no version."""
    if text.count(".") >= 3:
        yield from _ipv4(text)
    if text.count(":") >= 2:
        yield from _ipv6(text)


def _ipv4(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified or match.group().startswith("255."):
            continue
        if int(address) >> 24 == 0 or _VERSION_BEFORE.search(
            text, max(0, match.start() - _CONTEXT_CHARS), match.start()
        ):
            continue
        yield match.span()


def _ipv6(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        candidate = match.group()
        end = match.end()
        if candidate.endswith(":") and not candidate.endswith("::"):  # 'the host fe80::1: it is down'
            candidate, end = candidate[:-1], end - 1
        try:
            address = ipaddress.IPv6Address(candidate)
        except ValueError:
            continue
        groups = [group for group in candidate.split(":") if group]
        # 'add::bad' is a name in a program; an address has a digit, and more than two groups or a long one
        if address.is_loopback or address.is_unspecified or not any(c.isdigit() for c in candidate):
            continue
        long_one = any(len(group) == 4 and any(c.isdigit() for c in group) for group in groups)
        if len(groups) < 3 and not long_one:
            continue
        yield match.start(), end
