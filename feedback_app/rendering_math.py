r"""LaTeX as MathML nodes: `mathml(source)`, and Markdown's `\( \)` and `\[ \]`.

A formula is user input: commands that define others (an expansion can double with each), that leave the
formula's place or hide something, comments, and links are not followed; such a formula is shown as its source.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_SOURCE = 1500  # characters of one formula
MAX_DEPTH = 40

_TOKENS = ("mrow", "mi", "mn", "ms", "mtext", "msqrt", "mroot", "msub", "msup", "msubsup", "merror")
TAGS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_TOKENS, frozenset({"mathvariant"})),
    "mstyle": frozenset({"displaystyle", "scriptlevel", "mathvariant"}),
    **dict.fromkeys(("munder", "mover", "munderover"), frozenset({"accent", "accentunder"})),
    "math": frozenset({"display"}),
    "mo": frozenset(
        {"mathvariant", "fence", "form", "stretchy", "largeop", "movablelimits", "separator", "accent"}
        | {"minsize", "maxsize", "lspace", "rspace"}
    ),
    "mfrac": frozenset({"linethickness"}),
    "mspace": frozenset({"width"}),
    "mtable": frozenset({"columnalign", "columnlines", "rowlines", "displaystyle"}),
    "mtr": frozenset(),
    "mtd": frozenset({"columnalign"}),
    "menclose": frozenset({"notation"}),
}
_VALUE = re.compile(
    r"[a-z][a-z -]{0,199}|[0-9]|-?(?:[0-3]?\.\d{1,5}|[0-3])(?:em|ex)|[0-3]?\.\d{1,5}|\d{1,3}%"
)
_WIDTH = re.compile(r"(?:[0-3]?\.\d{1,5}|[0-3])(?:em|ex)")
# What defines, colours over, hides or moves; and '%', which starts a comment.
_REFUSED = re.compile(
    r"\\(?:(?:re|provide)?newcommand|newenvironment|renewenvironment|DeclareMathOperator|[egx]?def|let|csname|href|url"
    r"|[hv]?phantom|rule|unicode|style|class|cssId|htmlData|includegraphics|require|math[lrc]lap|[lrc]lap"
    r"|[hm]?skip|[hm]?kern|mkern|hspace|vspace|mspace|raise|lower|moveleft|moveright|smash|skew|buildrel|above"
    r"|tiny|Tiny|Huge|huge|LARGE|mathchoice)(?![A-Za-z])|(?<!\\)(?:\\\\)*%"
)
_REFERENCE = re.compile(r"&#x([0-9A-Fa-f]{1,6});")


def mathml(source: str, *, display: bool) -> list[Any] | None:
    """The formula as one node, None when it is refused or cannot be read. Never raises."""
    if not source or len(source) > MAX_SOURCE or _REFUSED.search(source) or not _is_balanced(source):
        return None
    try:
        element = Converter(display="block" if display else "inline").convert_to_element(source)
        return _node(element, 0)
    except Exception:  # the converter raises what it likes on input that it does not know
        return None


def _is_balanced(source: str) -> bool:
    depth = deepest = 0
    for character in source:
        depth += (character == "{") - (character == "}")
        deepest = max(deepest, depth)
    return depth == 0 and deepest <= MAX_DEPTH


def _node(element: Element, depth: int) -> list[Any]:
    allowed = TAGS.get(element.tag)
    if allowed is None or depth > 2 * MAX_DEPTH:
        raise ValueError(element.tag)
    attributes = {
        name: value for name, value in element.attrib.items() if name in allowed and _VALUE.fullmatch(value)
    }
    if element.tag == "mspace" and not _WIDTH.fullmatch(attributes.get("width", "0em")):
        attributes.pop("width")
    children: list[Any] = [_characters(element.text)] if element.text else []
    for child in element:
        children.append(_node(child, depth + 1))
        if child.tail:
            children.append(_characters(child.tail))
    return [element.tag, attributes, children]


def _characters(text: str) -> str:
    """latex2mathml writes symbols as references, for a serializer that does not escape them."""

    def character(match: re.Match[str]) -> str:
        code = int(match[1], 16)
        return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else match[0]

    return _REFERENCE.sub(character, text)


# --- Markdown's \( \) and \[ \] ----------------------------------------------------------------------------


def bracket_math_plugin(parser: MarkdownIt) -> None:
    r"""Formulas as `\( ... \)` and `\[ ... \]` in a line, and `\[ ... \]` over several lines."""
    parser.inline.ruler.before("escape", "math_bracket", _inline)
    parser.block.ruler.before(
        "fence", "math_bracket", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )


def _inline(state: StateInline, silent: bool) -> bool:
    opening = state.src[state.pos : state.pos + 2]
    if opening not in ("\\(", "\\["):
        return False
    closing = "\\)" if opening == "\\(" else "\\]"
    end = state.src.find(closing, state.pos + 2, state.pos + 2 + MAX_SOURCE)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_bracket", "math", 0)
        token.content, token.markup = state.src[state.pos + 2 : end], opening
    state.pos = end + 2
    return True


def _block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    start = state.bMarks[start_line] + state.tShift[start_line]
    if state.is_code_block(start_line) or not state.src.startswith("\\[", start, state.eMarks[start_line]):
        return False
    last, length = start_line, 0
    while True:
        line = state.src[state.bMarks[last] : state.eMarks[last]].rstrip()
        length += len(line)
        if "\\]" in line:
            break
        last += 1
        if last >= end_line or length > MAX_SOURCE or state.sCount[last] < state.blkIndent:
            return False
    if not line.endswith("\\]") or line.count("\\]") > 1:
        return False
    if not silent:
        token = state.push("math_bracket", "math", 0)
        text = state.getLines(start_line, last + 1, state.blkIndent, False).strip()
        token.block, token.markup, token.map = True, "\\[", [start_line, last + 1]
        token.content = text.removeprefix("\\[").removesuffix("\\]")
    state.line = last + 1
    return True
