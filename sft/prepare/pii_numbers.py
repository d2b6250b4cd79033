"""Phone numbers, IBANs and payment cards: digits that pass the check that their kind has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers

Span = tuple[int, int]

# ISO 13616 registry: length by country
IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FK", "FO", "FI", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK", "MN"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL", "SO", "OM"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "ST", "LY"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    "LC": 32,
    "RU": 33,
}
_IBAN = re.compile(r"(?<![0-9A-Za-z])([A-Za-z]{2})(\d{2})((?:[ -]?[0-9A-Za-z]){11,30})")

# Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay, Maestro: (pattern, lengths)
_ISSUERS = (
    (re.compile(r"4"), (16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"30[0-5]|3[689]"), (14,)),
    (re.compile(r"62"), (16, 19)),
    (re.compile(r"5018|5020|5038|6304|6759|676[1-3]"), (16, 19)),
)
_CARD = re.compile(r"(?<![\w.+/#-])\d(?:[ -]?\d){13,18}(?![\w/]|[-.]\d)")
_CARD_LIKE_BEFORE = re.compile(
    r"(?:\border|\btracking|\binvoice|\bisbn|\bimei|\bserial|\bparcel|\bticket|\btransaction|\breference|\bsku|\bean|"
    r"\bcase|\bid|\bshipment|\bbatch|\bbarcode)\b[\s\w.:#-]{0,16}$",
    re.IGNORECASE,
)

_PHONE = re.compile(
    r"(?<![\w.,+/:#$€£=*^_@-])(?:(?<![-–][ ])|(?=\+))"
    r"(\+|00(?=[1-9]))?[ ]?"
    r"(?:\(?\d{1,5}\)?)"
    r"(?:[ ./\u00a0‑-]{0,2}\(?\d{1,6}\)?){1,7}"
    r"(?![\w/@%°]|[.,:-]\d|[ ]?[-*^=+×/][ ]?\d)"
)
_PHONE_BEFORE = re.compile(
    r"(?:\bcall(?:ed|ing)?|\bphone|\btel|\btelephone|\bmobile|\bcell|\bfax|\bwhats ?app|\btext(?:ed)?|\bsms|\bdial|"
    r"\breach(?:ed|able)?|\bring|\bcontact|\bhotline|\btelefon|\bhandy|\bmobil|\brufnummer|\btél|\btéléphone|"
    r"\bteléfono|\btelefono|\bmy number|\bnumber is|☎|📞)[\s\w.:,'’()/-]{0,24}$",
    re.IGNORECASE,
)
_NO_PHONE_BEFORE = re.compile(
    r"(?:\bisbn|\bissn|\border|\binvoice|\bserial|\bversion|\bpart|\bmodel|\bticket|\bcase|\btracking|\bsku|\bpatent|"
    r"\bdoi|\bid|\bcode|\bref|\breference|\baccount|\bflight|\bbatch|\blot|\bitem|\bproduct|\bno|\bnr|\bpages?|\bpp)\b"
    r"[\s.:#№]{0,3}(?:\bnumber|\bno\b|\bcode\b)?[\s.:#№is]{0,4}$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])|(?:0?[1-9]|[12]\d|3[01])[-./ ]"
    r"(?:0?[1-9]|[12]\d|3[01])[-./ ](?:19|20)\d\d)\b"
)
_CONTEXT_CHARS = 40
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 7, 15
MIN_CARD_DIGITS = 14


def luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1: every second digit from the right is doubled."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_is_valid(iban: str) -> bool:
    """Country, length and the mod-97 checksum of ISO 13616; `iban` without spaces, in capitals."""
    if IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers, with or without spaces."""
    for match in _IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match.group(1).upper())
        if length is None:
            continue
        end = _end_of(text, match.start(), length)
        if end is None or (end < len(text) and text[end].isalnum()):
            continue
        compact = re.sub(r"[ -]", "", text[match.start() : end]).upper()
        if compact.isascii() and iban_is_valid(compact):
            yield match.start(), end


def _end_of(text: str, start: int, length: int) -> int | None:
    """Where the `length`-th letter or digit from `start` ends; single spaces and dashes are passed over."""
    found = 0
    for place in range(start, len(text)):
        if text[place].isalnum():
            found += 1
            if found == length:
                return place + 1
        elif text[place] not in " -":
            return None
    return None


def cards(text: str) -> Iterator[Span]:
    """Payment cards: the issuer's first digits and length, and Luhn's check digit."""
    for match in _CARD.finditer(text):
        written = match.group()
        while not _is_card(written):  # '4111 ... 1111 123': the code on the back is written behind it
            written = re.sub(r"[ -]?\d+$", "", written) if re.search(r"[ -]\d+$", written) else ""
            if len(written) < MIN_CARD_DIGITS:
                break
        else:
            before = text[max(0, match.start() - _CONTEXT_CHARS) : match.start()]
            if written.isdigit() and _CARD_LIKE_BEFORE.search(before) and "card" not in before.lower():
                continue
            yield match.start(), match.start() + len(written)


def _is_card(written: str) -> bool:
    digits = re.sub(r"\D", "", written)
    issued = any(issuer.match(digits) and len(digits) in lengths for issuer, lengths in _ISSUERS)
    return issued and len(set(digits)) >= 3 - (digits[:1] == "4") and luhn(digits)


def phones(text: str, region: str | None) -> Iterator[Span]:
    """Numbers that somebody can call: international ones, and those of `region` in a form that only phones have.

    A bare run of digits counts where a word such as 'call' stands before it.
    """
    for match in _PHONE.finditer(text):
        written = _balanced(match.group().strip())
        start = match.start() + match.group().index(written)
        num_digits = sum(char.isdigit() for char in written)
        if not MIN_PHONE_DIGITS <= num_digits <= MAX_PHONE_DIGITS:
            continue
        before = text[max(0, start - _CONTEXT_CHARS) : start]
        if _may_call(written, before, region):
            yield start, start + len(written.rstrip(" .-(/"))


def _balanced(written: str) -> str:
    """Without the brackets that the sentence put around the number, or that are open or closed only."""
    inner = written[1:-1]
    if written[0] == "(" and written[-1] == ")" and "(" not in inner and ")" not in inner:
        return inner
    if written.count("(") > written.count(")"):
        return written.lstrip("(") if written[0] == "(" else written.rstrip("( ")
    return written.rstrip(") ") if written.count(")") > written.count("(") else written


def _may_call(written: str, before: str, region: str | None) -> bool:
    invited = bool(_PHONE_BEFORE.search(before))
    if not invited and _NO_PHONE_BEFORE.search(before):
        return False
    if written.startswith("+"):
        return _is_number(written, None)
    if written.startswith("00") and _is_number(f"+{written[2:]}", None):
        return True
    if region is None or _DATE.fullmatch(written) or not _is_number(written, region):
        return False
    return invited or _has_form(written, region)


@lru_cache(maxsize=65_536)
def _is_number(written: str, region: str | None) -> bool:
    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number)


def _has_form(written: str, region: str) -> bool:
    """Whether the digits are grouped as the numbering plan groups them, with signs that belong to phones."""
    if "." in written or "," in written:
        # 415.555.0132 is written so, 3.14159265 is not
        if not re.fullmatch(r"\(?\d{3}\)?\.\d{3}\.\d{4}", written):
            return False
    elif not re.search(r"[ ()\u00a0‑-]", written):
        return False
    matcher = phonenumbers.PhoneNumberMatcher(
        written, region, leniency=phonenumbers.Leniency.STRICT_GROUPING, max_tries=4
    )
    return next(iter(matcher), None) is not None
