"""Code as coloured spans: `highlighted(code, language)`.

Only languages whose pygments lexers stayed linear on hostile input are used (a lexer is a set of regular
expressions, and one that backtracks cannot be stopped); code in any other language has no colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pygments.lexer import Lexer, RegexLexer, words
from pygments.lexers import get_lexer_by_name
from pygments.token import (
    Comment,
    Generic,
    Keyword,
    Literal,
    Name,
    Number,
    Operator,
    String,
    Text,
    _TokenType,
)

MAX_LINE = 2000  # characters; a longer line gets no colours

_CLIKE = (
    "abstract alignas auto bool boolean break byte case catch char class const constexpr continue default delete do "
    "double else enum explicit extends extern false final finally float for friend goto if implements import inline "
    "instanceof int interface let long namespace new noexcept null nullptr operator override package private protected "
    "public readonly record return short signed sizeof static std string struct super switch synchronized template "
    "this throw throws true try typedef typename union unsigned using var virtual void volatile while"
)


class _CLike(RegexLexer):
    """C, C++, Java and C#: pygments' own lexers for them need seconds for 12,000 blank lines."""

    tokens: ClassVar = {
        "root": [
            (r"//[^\n]*", Comment.Single),
            (r"/\*(?:[^*]|\*(?!/))*\*/", Comment.Multiline),
            (r"^[ \t]*#[^\n]*", Comment.Preproc),
            (r'"(?:[^"\\\n]|\\.)*"', String),
            (r"'(?:[^'\\\n]|\\.)*'", String),
            (r"\d[\w.]*", Number),
            (r"@\w+", Name.Decorator),
            (words(_CLIKE.split(), suffix=r"\b"), Keyword),
            (r"[A-Za-z_]\w*(?=\()", Name.Function),
            (r"[A-Za-z_]\w*", Name),
            (r"\s+", Text),
            (r".", Text),
        ]
    }


# Name a person may write -> pygments' name of the lexer; None is the one above.
_SUPPORTED = """bash css diff go html javascript json kotlin lua php python r ruby rust sql swift toml typescript xml
    yaml"""
LANGUAGES: dict[str, str | None] = {
    **{name: name for name in _SUPPORTED.split()},
    **dict.fromkeys(("c", "h", "cpp", "c++", "cc", "hpp", "java", "csharp", "cs", "c#")),
    **{"py": "python", "python3": "python", "js": "javascript", "jsx": "javascript", "ts": "typescript"},
    **{"tsx": "typescript", "sh": "bash", "shell": "bash", "zsh": "bash", "console": "bash"},
    **{"yml": "yaml", "rs": "rust", "rb": "ruby", "golang": "go", "patch": "diff"},
}
_CLASSES: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "rt-c"),
    (Keyword, "rt-k"),
    (String, "rt-s"),
    (Literal, "rt-m"),
    (Operator.Word, "rt-k"),
    (Name.Function, "rt-n"),
    (Name.Class, "rt-n"),
    (Name.Decorator, "rt-n"),
    (Name.Tag, "rt-k"),
    (Name.Attribute, "rt-n"),
    (Name.Builtin, "rt-n"),
    (Generic.Inserted, "rt-ins"),
    (Generic.Deleted, "rt-del"),
    (Generic.Heading, "rt-c"),
    (Generic.Subheading, "rt-c"),
)
CLASSES = frozenset(name for _, name in _CLASSES)
_LEXERS: dict[str, Lexer] = {}
_KNOWN: dict[_TokenType, str] = {}


def highlighted(code: str, info: str, tick: Callable[[], None]) -> list[Any]:
    """The code as strings and spans; `info` is what stands behind the fence. Calls `tick` for each token."""
    lexer = _lexer(info.split()[0].lower().strip("{}.")) if info else None
    if lexer is None or any(len(line) > MAX_LINE for line in code.split("\n")):
        return [code]
    nodes: list[Any] = []
    last = ""
    for _, kind, value in lexer.get_tokens_unprocessed(code):
        tick()
        name = _class(kind)
        if nodes and name == last:  # neighbours of one colour are one node
            if name:
                nodes[-1][2][0] += value
            else:
                nodes[-1] += value
        else:
            nodes.append(["span", {"class": name}, [value]] if name else value)
        last = name
    shown = "".join(node if isinstance(node, str) else node[2][0] for node in nodes)
    return nodes if shown == code else [code]


def _lexer(name: str) -> Lexer | None:
    if name not in LANGUAGES:
        return None
    if name not in _LEXERS:
        known = LANGUAGES[name]
        _LEXERS[name] = _CLike() if known is None else get_lexer_by_name(known)
    return _LEXERS[name]


def _class(kind: _TokenType) -> str:
    if kind not in _KNOWN:
        _KNOWN[kind] = next((name for parent, name in _CLASSES if kind in parent), "")
    return _KNOWN[kind]
