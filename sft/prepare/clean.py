"""One form for texts: Unicode NFC, no control characters, one kind of line ends and spaces.

Code keeps its indentation and tabs, emoji keep their joiners, and right-to-left scripts their marks (of those only
the overrides, with which text can be made to look like another, are taken out).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from sft.prepare.rows import Sample

# C0 without tab, line feed and carriage return; DEL; C1 without NEL; zero-width space, word joiner, byte-order
# mark, soft hyphen; bidirectional overrides and embeddings; noncharacters.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\u202a-\u202e\ufdd0-\ufdef\ufffe\uffff]"
)
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


def nfc(text: str) -> str:
    """Unicode normal form NFC; lone surrogates cannot come this far (the readers refuse them)."""
    return (
        text
        if text.isascii() or unicodedata.is_normalized("NFC", text)
        else unicodedata.normalize("NFC", text)
    )


def without_control(text: str) -> str:
    return _CONTROL.sub("", text)


def one_whitespace(text: str) -> str:
    """Line feeds only, plain spaces only, none at the end of a line, one empty line at most, none around the text.

    The first line keeps its indentation.
    """
    if not text.isascii():
        text = _SPACES.sub(" ", text)
    text = _LINE_ENDS.sub("\n", text)
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = _EMPTY_LINES.sub("\n\n", text)
    text = text.rstrip().lstrip("\n")
    return text[1:] if text[:1] == " " and text[1:2] != " " else text  # a single space is no indentation


class Cleaner:
    """The chosen steps over all texts of a row. counts: rows that each step changed."""

    def __init__(self, *, unicode: bool, control: bool, whitespace: bool) -> None:
        chosen = {"unicode": (unicode, nfc), "control": (control, without_control)}
        chosen["whitespace"] = (whitespace, one_whitespace)
        self.steps = {name: step for name, (on, step) in chosen.items() if on}
        self.counts: Counter[str] = Counter()

    def apply(self, sample: Sample) -> None:
        changed: set[str] = set()

        def edit(text: str) -> str:
            for name, step in self.steps.items():
                after = step(text)
                if after is not text and after != text:
                    changed.add(name)
                text = after
            return text

        sample.change(edit)
        self.counts.update(changed)
