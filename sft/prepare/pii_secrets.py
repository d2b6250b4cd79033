"""Keys, tokens and passwords: what the issuers' prefixes give away, and high entropy after a word such as 'token'."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

_BLOCK = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,20000}?"
    r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{40,255}"  # GitHub
    r"|glpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{20,255}"  # Slack
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,255}"  # Stripe
    r"|sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,255}"  # model providers
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,255}"  # Google
    r"|hf_[A-Za-z0-9]{30,64}"  # Hugging Face
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,255}|dop_v1_[a-f0-9]{64}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"  # SendGrid
    r"|SK[a-f0-9]{32}(?![A-Za-z0-9])"  # Twilio
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON web tokens
    r")"
)
_NAMED = re.compile(
    r"(?:api[_ -]?key|api[_ -]?token|access[_ -]?key|access[_ -]?token|auth[_ -]?token|"
    r"secret(?:[_ -]?(?:key|access[_ -]?key))?|"
    r"client[_ -]?secret|private[_ -]?key|bearer|token|passwd|password|passphrase|pwd)"
    r"[\"'`]?\s{0,2}(?:[:=]|=>|\bis\b|(?<=[Bb]earer)\s)\s{0,2}[\"'`]?(?!\[)"
    r"([A-Za-z0-9+/_.~!@#$%^&*=-]{12,512})",
    re.IGNORECASE,
)
_HINT = re.compile(r"key|token|secret|bearer|passw|passphrase|pwd", re.IGNORECASE)
MIN_ENTROPY_BITS = 3.0  # per character; words have less than 3, random base 64 of 16 characters about 3.8


def keys(text: str) -> Iterator[Span]:
    """Private key blocks, tokens with a known prefix, and random-looking values of what is named a secret."""
    taken: list[Span] = []
    if "PRIVATE KEY" in text:
        taken += [match.span() for match in _BLOCK.finditer(text)]
    taken += [match.span() for match in _PREFIXED.finditer(text) if _mixed(match.group())]
    if _HINT.search(text):
        for match in _NAMED.finditer(text):
            value = match.group(1).rstrip(".,;:!?")
            if _looks_random(value):
                taken.append((match.start(1), match.start(1) + len(value)))
    yield from taken


def entropy(text: str) -> float:
    """Shannon entropy of the characters of a text, in bits per character."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def _mixed(token: str) -> bool:
    """'sk-learn-estimators-and-pipelines' has the prefix and is a name: keys mix digits or cases."""
    cases = any(char.isupper() for char in token) and any(char.islower() for char in token[4:])
    return (cases or sum(char.isdigit() for char in token) >= 2) and entropy(token) >= MIN_ENTROPY_BITS


def _looks_random(value: str) -> bool:
    has_digit = any(char.isdigit() for char in value)
    has_letter = any(char.isalpha() for char in value)
    return len(value) >= 12 and has_digit and has_letter and entropy(value) >= MIN_ENTROPY_BITS
