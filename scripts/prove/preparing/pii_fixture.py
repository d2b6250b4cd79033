# ruff: noqa: E501 - a look-alike is one line
"""Planted personal data of nobody, and lines that look like it and are none. Made up here, the same for a seed.

Numbers are from the ranges that are kept for fiction and documentation (555-01xx and its like in other countries,
192.0.2.0/24, 2001:db8::/32, example.com), or random with a right checksum; keys are random behind their prefix, so
no token stands in the source.
"""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable
from typing import NamedTuple

LETTERS_DIGITS = string.ascii_letters + string.digits


class Line(NamedTuple):
    """A line of text; `item` is the planted item in it and `kind` its kind, both empty for a look-alike."""

    text: str
    kind: str = ""
    item: str = ""


# ---- planted -------------------------------------------------------------------------------------------

_FIRST = [
    "ana",
    "ben",
    "carla",
    "dimitri",
    "elif",
    "farid",
    "grete",
    "hiro",
    "ines",
    "jonas",
    "kwame",
    "lucia",
    "mehmet",
    "nora",
    "olga",
    "pavel",
]
_LAST = [
    "almeida",
    "brandt",
    "costa",
    "dvorak",
    "eriksen",
    "fournier",
    "garcia",
    "hansen",
    "ivanova",
    "jensen",
    "kowalski",
    "lindqvist",
    "moreau",
]
_SENTENCES = (
    "You can reach me at {}.",
    "Please update the record: the old entry was {} and it is no longer valid.",
    "I tried {} twice this morning without any luck",
    "As discussed yesterday, use {}, and let me know if it fails.",
    'Customer wrote: "mine is {}" and asked for a refund.',
    "({})",
    "Details - {} - were forwarded to the accounting team on Monday.",
    "Could you check whether {} is still on file?",
    "{} is what the form shows; is that right?",
    "Hi, my colleague left this for you: {}\nThanks a lot!",
)
_PHONE_SENTENCES = (
    "You can call me on {} after five.",
    "My mobile is {}, leave a message if nobody answers.",
    "Please text {} when the parcel arrives.",
    "Front desk ({}) is open until eight.",
    "Dr. Moreau's practice, phone: {}",
    "Write or ring: {}.",
)


def planted(seed: int = 0, number: int = 200) -> list[Line]:
    """`number` lines with one item each, all kinds in turn."""
    rng = random.Random(f"planted {seed}")
    makers: tuple[tuple[str, Callable[[random.Random], str]], ...] = (
        ("EMAIL", _email),
        ("PHONE", _phone),
        ("IBAN", _iban),
        ("CARD", _card),
        ("IP", _ipv4),
        ("KEY", _key),
        ("PHONE", _phone),
        ("IP", _ipv6),
        ("EMAIL", _email),
        ("KEY", _key),
    )
    lines = []
    for place in range(number):
        kind, make = makers[place % len(makers)]
        item = make(rng)
        sentences = (
            _PHONE_SENTENCES
            if kind == "PHONE" and not item.startswith("+") and item.isdigit()
            else _SENTENCES
        )
        lines.append(Line(rng.choice(sentences).format(item), kind, item))
    return lines


def _digits(rng: random.Random, number: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(number))


def _email(rng: random.Random) -> str:
    first, last = rng.choice(_FIRST), rng.choice(_LAST)
    local = rng.choice(
        [f"{first}.{last}", f"{first}_{last}{rng.randint(1, 99)}", f"{first}+lists", f"{first[0]}{last}"]
    )
    host = rng.choice(
        [
            "example.com",
            "mail.example.org",
            "example.net",
            "uni-example.edu",
            "example.co.uk",
            "xn--bcher-kva.example",
        ]
    )
    whole = f"{local}@{host}"
    return rng.choice([whole, whole, whole.upper(), whole.title()])


def _phone(rng: random.Random) -> str:
    us = f"{rng.choice(['202', '415', '312', '617', '206'])}{{}}555{{}}01{_digits(rng, 2)}"
    return rng.choice(
        [
            us.format("-", "-"),
            us.format(" ", " "),
            us.format(".", "."),
            f"({us[:3]}) 555-01{us[-2:]}",
            f"+1 {us.format(' ', ' ')}",
            f"+1-{us.format('-', '-')}",
            f"+1{us.format('', '')}",
            us.format("", ""),
            f"+44 20 7946 0{_digits(rng, 3)}",
            f"+44 7700 900{_digits(rng, 3)}",
            f"0044 7700 900{_digits(rng, 3)}",
            f"+49 30 23125 {_digits(rng, 3)}",
            f"+33 1 99 00 {_digits(rng, 2)} {_digits(rng, 2)}",
            f"+61 491 570 {rng.choice(['006', '156', '157', '158', '159'])}",
            f"+46 8 465 004 {_digits(rng, 2)}",
        ]
    )


def _iban(rng: random.Random) -> str:
    country, pattern = rng.choice(
        [
            ("DE", "d" * 18),
            ("GB", "aaaa" + "d" * 14),
            ("FR", "d" * 23),
            ("NL", "aaaa" + "d" * 10),
            ("ES", "d" * 20),
            ("CH", "d" * 17),
            ("PL", "d" * 24),
            ("NO", "d" * 11),
            ("AT", "d" * 16),
        ]
    )
    account = "".join(rng.choice(string.ascii_uppercase if c == "a" else string.digits) for c in pattern)
    number = int("".join(str(int(c, 36)) for c in account + country + "00"))
    iban = f"{country}{98 - number % 97:02d}{account}"
    spaced = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
    return rng.choice([iban, spaced, spaced, iban.lower()])


def _card(rng: random.Random) -> str:
    prefix, length, groups = rng.choice(
        [
            ("4", 16, (4, 4, 4, 4)),
            ("53", 16, (4, 4, 4, 4)),
            ("37", 15, (4, 6, 5)),
            ("6011", 16, (4, 4, 4, 4)),
            ("2221", 16, (4, 4, 4, 4)),
        ]
    )
    body = prefix + _digits(rng, length - len(prefix) - 1)
    doubled = [int(c) * (2 if i % 2 == 0 else 1) for i, c in enumerate(reversed(body))]
    check = -sum(d - 9 if d > 9 else d for d in doubled) % 10
    digits = body + str(check)
    parts, place = [], 0
    for size in groups:
        parts.append(digits[place : place + size])
        place += size
    return rng.choice([digits, " ".join(parts), "-".join(parts)])


def _ipv4(rng: random.Random) -> str:
    network = rng.choice(["192.0.2", "198.51.100", "203.0.113"])
    return f"{network}.{rng.randint(1, 254)}"


def _ipv6(rng: random.Random) -> str:
    def group() -> str:
        return f"{rng.randint(0x1000, 0xFFFF):x}"

    return rng.choice(
        [
            f"2001:db8:{group()}:{group()}::{rng.randint(1, 9)}",
            f"2001:db8::{group()}:{group()}",
            f"2001:0db8:{group()}:{group()}:{group()}:{group()}:{group()}:{group()}",
            f"fe80::{group()}:{_token(rng, 2, '12345678')}ff:fe{rng.randint(16, 99)}:{group()}",
        ]
    )


def _token(rng: random.Random, number: int, alphabet: str = LETTERS_DIGITS) -> str:
    return "".join(rng.choice(alphabet) for _ in range(number))


def _key(rng: random.Random) -> str:
    url_safe = LETTERS_DIGITS + "-_"
    body = "\n".join(base64.b64encode(rng.randbytes(48)).decode() for _ in range(6))

    def part() -> str:
        return base64.urlsafe_b64encode(rng.randbytes(30)).decode().rstrip("=")

    return rng.choice(
        [
            "AK" + "IA" + _token(rng, 16, string.ascii_uppercase + string.digits),
            "gh" + "p_" + _token(rng, 36),
            "gl" + "pat-" + _token(rng, 20, url_safe),
            "xo" + "xb-" + _digits(rng, 12) + "-" + _token(rng, 24),
            "sk" + "_live_" + _token(rng, 24),
            "sk" + "-proj-" + _token(rng, 40, url_safe),
            "AI" + "za" + _token(rng, 35, url_safe),
            "hf" + "_" + _token(rng, 34),
            "ey" + "J" + part() + ".ey" + "J" + part() + "." + part(),
            "-----BEGIN RSA " + f"PRIVATE KEY-----\n{body}\n-----END RSA " + "PRIVATE KEY-----",
            f'api_key = "{_token(rng, 32)}"',
            f"password: {_token(rng, 14)}#7q",
            f"SECRET_KEY={_token(rng, 40, string.hexdigits.lower())}",
        ]
    )


# ---- look-alikes ---------------------------------------------------------------------------------------


def look_alikes(seed: int = 0, number: int = 2000) -> list[Line]:
    """Lines with versions, order numbers, ISBNs, hashes, dates, decimals, MAC addresses, mathematics, code."""
    rng = random.Random(f"look-alikes {seed}")
    return [Line(_LOOK_ALIKES[place % len(_LOOK_ALIKES)](rng)) for place in range(number)]


def _isbn13(rng: random.Random) -> str:
    body = "978" + _digits(rng, 9)
    check = -sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(body)) % 10
    d = body + str(check)
    return rng.choice(
        [d, f"{d[:3]}-{d[3]}-{d[4:8]}-{d[8:12]}-{d[12]}", f"{d[:3]} {d[3]} {d[4:8]} {d[8:12]} {d[12]}"]
    )


def _isbn10(rng: random.Random) -> str:
    d = _digits(rng, 9)
    return f"{d[0]}-{d[1:5]}-{d[5:9]}-{rng.choice('0123456789X')}"


def _hex(rng: random.Random, number: int) -> str:
    return _token(rng, number, "0123456789abcdef")


def _n(rng: random.Random, low: int, high: int) -> int:
    return rng.randint(low, high)


_LOOK_ALIKES: tuple[Callable[[random.Random], str], ...] = (
    lambda r: (
        f"Upgrade to version {_n(r, 1, 20)}.{_n(r, 0, 30)}.{_n(r, 0, 99)}.{_n(r, 0, 255)} before Friday."
    ),
    lambda r: f"The bug is gone since v{_n(r, 1, 9)}.{_n(r, 0, 30)}.{_n(r, 0, 9)}.{_n(r, 0, 99)}",
    lambda r: f"pip install toolbox=={_n(r, 1, 9)}.{_n(r, 0, 30)}.{_n(r, 0, 9)}",
    lambda r: f"Your order number is {_digits(r, 12)}; it ships tomorrow.",
    lambda r: f"Order #{_digits(r, 3)}-{_digits(r, 7)}-{_digits(r, 7)} was cancelled.",
    lambda r: f"Invoice {_n(r, 2019, 2026)}-{_digits(r, 6)} is due in 30 days.",
    lambda r: f"The book has ISBN {_isbn13(r)} and 320 pages.",
    lambda r: f"ISBN-13: {_isbn13(r)}, paperback.",
    lambda r: f"See ISBN {_isbn10(r)} for the first edition.",
    lambda r: f"Fixed in commit {_hex(r, 40)} on the main branch.",
    lambda r: f"The sha256 of the file is {_hex(r, 64)}.",
    lambda r: f"md5 {_hex(r, 32)} does not match what the page says.",
    lambda r: f"The request id was {_hex(r, 8)}-{_hex(r, 4)}-4{_hex(r, 3)}-a{_hex(r, 3)}-{_hex(r, 12)}.",
    lambda r: (
        f"The meeting is on {_n(r, 2019, 2026)}-{_n(r, 1, 12):02d}-{_n(r, 1, 28):02d} at {_n(r, 8, 18)}:30."
    ),
    lambda r: f"Born {_n(r, 1, 28):02d}.{_n(r, 1, 12):02d}.{_n(r, 1900, 2010)}, he never left the village.",
    lambda r: (
        f"From {_n(r, 1, 28)}/{_n(r, 1, 12)}/{_n(r, 1990, 2026)} to {_n(r, 1, 28)}/{_n(r, 1, 12)}/{_n(r, 1990, 2026)}."
    ),
    lambda r: (
        f"Logged at {_n(r, 2019, 2026)}-{_n(r, 1, 12):02d}-{_n(r, 1, 28):02d}T{_n(r, 0, 23):02d}:{_n(r, 0, 59):02d}:{_n(r, 0, 59):02d}.{_digits(r, 6)}Z."
    ),
    lambda r: f"Pi is 3.{_digits(r, 12)}, roughly.",
    lambda r: (
        f"The loss fell from {_n(r, 1, 9)}.{_digits(r, 4)} to 0.{_digits(r, 6)} in {_n(r, 100, 9000)} steps."
    ),
    lambda r: f"The MAC address is {':'.join(_hex(r, 2) for _ in range(6))}.",
    lambda r: f"Its hardware id reads {'-'.join(_hex(r, 2).upper() for _ in range(6))}",
    lambda r: (
        f"{_n(r, 100, 999)} + {_n(r, 1000, 9999)} = {_n(r, 1000, 9999)}, and {_n(r, 2, 99)} * {_n(r, 100, 999)} = {_n(r, 1000, 99999)}."
    ),
    lambda r: f"Compute {_digits(r, 5)} - {_digits(r, 4)} - {_digits(r, 3)} without a calculator.",
    lambda r: (
        f"x = ({_n(r, 1, 99)} - {_n(r, 1, 99)}) / {_n(r, 100, 999)}, so 1 {_n(r, 100, 999)} {_n(r, 100, 999)} are left"
    ),
    lambda r: (
        f"The city has {_n(r, 1, 9)} {_n(r, 100, 999)} {_n(r, 100, 999)} inhabitants and {_n(r, 100, 999)},{_n(r, 100, 999)} cars."
    ),
    lambda r: f"Revenue was ${_n(r, 1, 999)},{_n(r, 100, 999)},{_n(r, 100, 999)}.{_digits(r, 2)} last year.",
    lambda r: f"The unix time is {_n(r, 1500000000, 1790000000)}.",
    lambda r: f"std::vector<int> a::b::c{_n(r, 1, 9)}; foo::bar(baz::Bad);",
    lambda r: (
        f"The ratio is {_n(r, 1, 12)}:{_n(r, 10, 59)}:{_n(r, 10, 59)} and he ran it in {_n(r, 2, 4)}:{_n(r, 10, 59)}:{_n(r, 10, 59)}."
    ),
    lambda r: f"Use the decorator @cached{_n(r, 1, 99)} or mail the list by hand @ noon, not before.",
    lambda r: f"Follow @{r.choice(_FIRST)}_{_n(r, 1, 99)} and read the thread @{r.choice(_LAST)}.",
    lambda r: f"npm install left-pad@{_n(r, 1, 9)}.{_n(r, 0, 9)}.{_n(r, 0, 9)} and icon@{_n(r, 2, 3)}x.png",
    lambda r: f"git clone git@git.example.com:team{_n(r, 1, 99)}/project.git",
    lambda r: f"Section {_n(r, 1, 9)}.{_n(r, 1, 9)}.{_n(r, 1, 30)}.{_n(r, 1, 30)} of the standard says so.",
    lambda r: f"The server listens on 127.0.0.1:{_n(r, 3000, 9000)} and on 0.0.0.0.",
    lambda r: f"Set the netmask to 255.255.{r.choice(['255', '0', '128'])}.0 and try again.",
    lambda r: f"The tracking number {_digits(r, 16)} is not known to the carrier.",
    lambda r: f"Serial no. {_digits(r, 10)}, model {_token(r, 2, string.ascii_uppercase)}-{_digits(r, 4)}.",
    lambda r: (
        f"US patent {_n(r, 5, 11)},{_digits(r, 3)},{_digits(r, 3)} and DOI 10.{_n(r, 1000, 9999)}/{_digits(r, 7)}."
    ),
    lambda r: (
        f"arXiv:{_n(r, 10, 26)}{_n(r, 1, 12):02d}.{_digits(r, 5)}, pages {_n(r, 100, 300)}-{_n(r, 301, 900)}."
    ),
    lambda r: f"The coordinates are {_n(r, -89, 89)}.{_digits(r, 6)}, {_n(r, -179, 179)}.{_digits(r, 6)}.",
    lambda r: "The token is an international-cooperation word, token: abc, and the password is long.",
    lambda r: (
        f"A key: value pair such as token=word or secret = {r.choice(['santa', 'garden', 'ingredient'])} is fine."
    ),
    lambda r: (
        f"She scored {_n(r, 10, 99)} {_n(r, 10, 99)} {_n(r, 10, 99)} {_n(r, 10, 99)} points in the four rounds."
    ),
    lambda r: (
        f"Binary: {_token(r, 8, '01')} {_token(r, 8, '01')} {_token(r, 8, '01')}, in hex 0x{_hex(r, 8)}."
    ),
    lambda r: (
        f"The matrix is [[{_n(r, 1, 9)}, {_n(r, 1, 9)}], [{_n(r, 10, 99)}, {_n(r, 100, 999)}]] and det = {_n(r, 1000, 99999)}."
    ),
    lambda r: (
        f"Use sk-learn-pipelines-and-estimators or task-{_n(r, 100, 999)}-subtask-names for the branch."
    ),
    lambda r: (
        f"GB{_n(r, 10, 99)} is a bus, DE{_n(r, 10, 99)} a road and FR{_n(r, 10, 99)} WHAT THEY CALL A TRAIN LINE."
    ),
    lambda r: (
        f"Part number {_n(r, 100, 999)}-{_digits(r, 4)}-{_digits(r, 2)} replaces {_n(r, 100, 999)}-{_digits(r, 4)}."
    ),
    lambda r: (
        f"Between {_n(r, 1800, 1900)}-{_n(r, 1901, 1990)} about {_n(r, 100, 999)} 000 000 tons were shipped."
    ),
)
