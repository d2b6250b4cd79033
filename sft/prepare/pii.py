"""Personal data in texts: found by pattern, checked where there is a check, and masked as [EMAIL], [PHONE], ...

    EMAIL    RFC 5321 addresses with a top-level domain        IP    IPv4, IPv6 (RFC 4291) but for loopback
    PHONE    valid by the numbering plan (libphonenumber)      KEY   known prefixes, private key blocks, entropy
    IBAN     country, length and mod-97 checksum (ISO 13616)   CARD  issuer, length and Luhn (ISO/IEC 7812)

Version numbers, order numbers, ISBNs, dates and hashes are no personal data. What surrounds a match decides where
its form does not: 'firmware 10.2.0.1' is a version, 'tel. 4155550132' a number that somebody can call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from sft.prepare.pii_network import emails, ip_addresses
from sft.prepare.pii_numbers import cards, ibans, phones
from sft.prepare.pii_secrets import keys
from sft.prepare.rows import Sample

KINDS = ("KEY", "EMAIL", "IBAN", "CARD", "IP", "PHONE")
MIN_DIGITS = {"KEY": 1, "EMAIL": 0, "IBAN": 8, "CARD": 14, "IP": 1, "PHONE": 7}
Span = tuple[int, int]


class Found(NamedTuple):
    """One item: text[start:end]."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """Finds personal data; the findings are in order and do not overlap."""

    def find(self, text: str) -> list[Found]: ...


class PatternFinder:
    """The kinds of `KINDS`. Where two overlap the one that comes first in that list counts."""

    def __init__(self, phone_region: str | None = "US") -> None:
        self.finders: tuple[tuple[str, Callable[[str], Iterator[Span]]], ...] = (
            ("KEY", keys),
            ("EMAIL", emails),
            ("IBAN", ibans),
            ("CARD", cards),
            ("IP", ip_addresses),
            ("PHONE", lambda text: phones(text, phone_region)),
        )

    def find(self, text: str) -> list[Found]:
        num_digits = sum(map(text.count, "0123456789"))  # most texts have few, and most kinds need many
        found: list[Found] = []
        for kind, finder in self.finders:
            if num_digits < MIN_DIGITS[kind]:
                continue
            for start, end in finder(text):
                if all(end <= other.start or start >= other.end for other in found):
                    found.append(Found(start, end, kind))
        return sorted(found)


def masked(text: str, found: Sequence[Found]) -> str:
    """The text with [KIND] in place of each finding."""
    parts, place = [], 0
    for item in found:
        parts += [text[place : item.start], f"[{item.kind}]"]
        place = item.end
    return "".join([*parts, text[place:]])


class PersonalData:
    """Looks through rows. items: findings per kind; rows: rows with that kind."""

    def __init__(self, mode: str, finder: Finder) -> None:
        self.mode, self.finder = mode, finder
        self.items: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def apply(self, sample: Sample) -> list[str]:
        """The kinds in the row; they are masked unless the mode is 'report'."""
        kinds: set[str] = set()

        def edit(text: str) -> str:
            found = self.finder.find(text)
            self.items.update(item.kind for item in found)
            kinds.update(item.kind for item in found)
            return masked(text, found) if found and self.mode != "report" else text

        sample.change(edit)
        sample.change_beside(edit)
        self.rows.update(kinds)
        return sorted(kinds)

    def mask(self, text: str) -> str:
        """A text for the quarantine, where what was found is not to be read either."""
        return text if self.mode == "report" else masked(text, self.finder.find(text))
