"""Markdown of models and people as a tree of a few harmless tags: `tree(text)`.

A tree is a list of nodes; a node is a string or `[tag, attributes, children]`. Only the tags of `TAGS` and
`rendering_math.TAGS` occur in it, with the attributes listed there, so that `pages/render.js` can build elements from
it without ever parsing markup. Nothing in a tree makes a browser fetch anything: an image is its alt text and
address, a link shows where it leads. Nothing of the source is lost: what cannot be rendered is shown as it was
written, and a text that takes too long, nests too deep or grows too large comes back whole as plain text.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from feedback_app.rendering_code import highlighted
from feedback_app.rendering_math import bracket_math_plugin, mathml

Node: TypeAlias = "str | list[Any]"

MAX_CHARACTERS = 40_000  # a longer text is shown as it is: parsing costs about 2 s per million characters
MAX_SECONDS = 0.5  # of this thread's processor time, so that a busy machine does not change what is shown
MAX_NODES = 20_000
MAX_DEPTH = 60
MAX_CODE = 8_000  # characters of all code blocks of a text that get colours
MAX_CACHED_NODES = 200_000

_BARE = (
    *("p", "h3", "h4", "h5", "h6", "ul", "li", "blockquote", "pre", "em", "strong", "s", "hr", "br"),
    *("table", "thead", "tbody", "tr"),
)
TAGS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_BARE, frozenset()),
    **dict.fromkeys(("div", "span", "code", "th", "td"), frozenset({"class"})),
    "ol": frozenset({"start"}),
    "a": frozenset({"href"}),
}
LINK_SCHEMES = frozenset({"http", "https", "mailto"})
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|[0-9a-f:]*:[0-9a-f:.]+")
_MATH = frozenset({"math_inline", "math_inline_double", "math_block", "amsmath", "math_bracket"})
_DELIMITERS = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_RENAMED = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6"}  # h1 and h2 belong to the page


class _TooMuch(Exception):
    """The text is over a bound; it is shown as plain text."""


class _Budget:
    """What one text may cost; `spend` is called by every rule of the parser and for every node."""

    def __init__(self) -> None:
        self.ends_at = time.thread_time() + MAX_SECONDS
        self.num_calls = self.num_nodes = self.num_code = 0

    def check(self) -> None:
        if time.thread_time() > self.ends_at:
            raise _TooMuch

    def tick(self) -> None:
        self.num_calls += 1
        if self.num_calls % 32 == 0:
            self.check()

    def count(self, num_nodes: int = 1) -> None:
        self.num_nodes += num_nodes
        if self.num_nodes > MAX_NODES:
            raise _TooMuch


def tree(text: str, *, cached: bool = True) -> list[Node]:
    """The text as a tree (see above). Takes at most about `MAX_SECONDS` of processor time; never raises.

    With `cached`, the tree of a text that was asked for lately is the same object: do not change it.
    """
    if not cached:
        return _tree(text)
    found = _CACHE.get(text)
    if found is None:
        found = _tree(text)
        _CACHE.put(text, found)
    return found


def plain(text: str) -> list[Node]:
    """The text as it was written, line for line."""
    return [["div", {"class": "rt-plain"}, [text]]] if text else []


def size(nodes: list[Node]) -> int:
    """How many nodes a tree has."""
    return sum(1 if isinstance(node, str) else 1 + size(node[2]) for node in nodes)


class _Cache:
    """The trees used last, bounded by their nodes."""

    def __init__(self) -> None:
        self.trees: OrderedDict[str, tuple[list[Node], int]] = OrderedDict()
        self.num_nodes = 0
        self.lock = threading.Lock()

    def get(self, text: str) -> list[Node] | None:
        with self.lock:
            if text not in self.trees:
                return None
            self.trees.move_to_end(text)
            return self.trees[text][0]

    def put(self, text: str, nodes: list[Node]) -> None:
        # A text costs memory too: a node's list with its attributes takes about as much as 100 characters.
        cost = size(nodes) + len(text) // 100
        with self.lock:
            if text in self.trees:
                return
            self.trees[text] = (nodes, cost)
            self.num_nodes += cost
            while self.num_nodes > MAX_CACHED_NODES:
                _, (_, freed) = self.trees.popitem(last=False)
                self.num_nodes -= freed


_CACHE = _Cache()


def _on_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    state.env["budget"].tick()
    return False


def _on_inline(state: StateInline, silent: bool) -> bool:
    state.env["budget"].tick()
    return False


def _parser() -> MarkdownIt:
    # One newline is one line break: models write for chat windows, which do the same.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_DEPTH, "breaks": True})
    parser.enable(["table", "strikethrough"])
    # A link reference definition vanishes from the page; a rater has to see all that was written.
    parser.disable("reference")
    dollarmath_plugin(parser, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    amsmath_plugin(parser)
    bracket_math_plugin(parser)
    parser.block.ruler.before("table", "budget", _on_block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.inline.ruler.before("text", "budget", _on_inline)
    return parser


_PARSER = _parser()


def _tree(text: str) -> list[Node]:
    if len(text) > MAX_CHARACTERS:
        return plain(text)
    budget = _Budget()
    try:
        tokens = _PARSER.parse(text, {"budget": budget})
        # The parser leaves out what nests deeper than it may; nothing may be left out.
        if any(token.level >= MAX_DEPTH - 1 for token in tokens) or _has_lost_cells(tokens, text):
            return plain(text)
        nodes: list[Node] = []
        _Builder(budget).fill(nodes, tokens, 0)
        budget.check()
        return nodes
    except (_TooMuch, RecursionError):
        return plain(text)
    except Exception:  # a fault of the parser or a plugin must not keep a text from being read
        return plain(text)


def _has_lost_cells(tokens: list[Token], text: str) -> bool:
    """Whether a table row has more cells than its header: the parser drops those."""
    lines: list[str] | None = None
    for index, token in enumerate(tokens):
        if token.type == "table_open" and token.map:
            lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if lines is None else lines
            written = sum(_num_letters(line) for line in lines[token.map[0] : token.map[1]])
            kept = 0
            for cell in tokens[index:]:
                if cell.type == "table_close":
                    break
                kept += _num_letters(cell.content)
            if written > kept:
                return True
    return False


def _num_letters(text: str) -> int:
    return sum(map(str.isalnum, text))


class _Builder:
    """Tokens to nodes."""

    def __init__(self, budget: _Budget) -> None:
        self.budget = budget

    def fill(self, into: list[Node], tokens: list[Token], depth: int) -> None:
        """Append what the tokens say to `into`, which lies `depth` levels below the top."""
        stack, links = [into], []
        for token in tokens:
            self.budget.tick()
            self.budget.count()
            if depth + len(stack) > MAX_DEPTH:
                raise _TooMuch
            if token.type == "inline":
                self.fill(stack[-1], token.children or [], depth + len(stack))
            elif token.nesting == 0:
                stack[-1].extend(self._leaf(token))
            elif token.hidden:  # the paragraph of an item in a tight list
                continue
            elif token.nesting == 1:
                node = _opened(token)
                stack[-1].append(["div", {"class": "rt-scroll"}, [node]] if token.tag == "table" else node)
                stack.append(node[2])
                if token.type == "link_open":
                    links.append((_attribute(token, "href"), _attribute(token, "title")))
            else:
                children = stack.pop()
                if token.type == "link_close":
                    href, title = links.pop()
                    if children != [href] or title:
                        stack[-1].append(_address(href, title))

    def _leaf(self, token: Token) -> list[Node]:
        kind = token.type
        if kind in ("text", "text_special"):
            return [token.content] if token.content else []
        if kind in ("softbreak", "hardbreak"):
            return [["br", {}, []]]
        if kind == "hr":
            return [["hr", {}, []]]
        if kind == "code_inline":
            return [["code", {}, [token.content]]]
        if kind in ("fence", "code_block"):
            return self._code(token)
        if kind == "image":
            href, title = _attribute(token, "src"), _attribute(token, "title")
            return [["span", {"class": "rt-image"}, [f"Image: {token.content} "]], _address(href, title)]
        if kind in _MATH:
            return self._math(token)
        raise _TooMuch  # something that nobody has thought of is shown as it was written

    def _code(self, token: Token) -> list[Node]:
        info, code = token.info.strip(), token.content.removesuffix("\n")
        self.budget.num_code += len(code)
        spans = highlighted(code, info, self.budget.tick) if self.budget.num_code <= MAX_CODE else [code]
        self.budget.count(size(spans))
        label: list[Node] = [["div", {"class": "rt-lang"}, [info]]] if info else []
        return [*label, ["pre", {}, [["code", {}, spans]]]]

    def _math(self, token: Token) -> list[Node]:
        is_block = token.type in ("math_block", "amsmath") or token.block
        source = token.content.strip()
        self.budget.check()
        formula = mathml(source, display=is_block or token.markup in ("$$", "\\["))
        if formula is None:
            if token.type != "amsmath":
                source = token.markup + token.content + _DELIMITERS[token.markup]
            code: Node = ["code", {"class": "rt-tex"}, [source]]
            return [["pre", {}, [code]]] if is_block else [code]
        self.budget.count(size([formula]))
        return [["div", {"class": "rt-scroll"}, [formula]]] if is_block else [formula]


def _opened(token: Token) -> list[Any]:
    attributes: dict[str, str] = {}
    tag = _RENAMED.get(token.tag, token.tag)
    if tag == "a":
        href = _attribute(token, "href")
        if not is_link(href):
            return ["span", {}, []]
        attributes["href"] = href
    elif tag == "ol":
        start = _attribute(token, "start")
        if start.isdecimal() and len(start) < 10:
            attributes["start"] = start
    elif tag in ("th", "td"):
        side = _attribute(token, "style").removeprefix("text-align:")
        if side in ("center", "right"):
            attributes["class"] = f"rt-{side}"
    if tag not in TAGS:
        raise _TooMuch
    return [tag, attributes, []]


def is_link(address: str) -> bool:
    """Whether a click may lead there: an absolute http or https address with a plain host, or mailto."""
    try:
        parts = urlsplit(address)
        port = parts.port  # raises for what is none
    except ValueError:
        return False
    if not address.isascii() or not address.isprintable() or parts.scheme not in LINK_SCHEMES:
        return False
    if parts.scheme == "mailto":
        return bool(parts.path) and not parts.netloc
    return port != 0 and _HOST.fullmatch(parts.hostname or "") is not None


def _address(href: str, title: str) -> Node:
    return ["span", {"class": "rt-url"}, [f"{href} “{title}”" if title else href]]


def _attribute(token: Token, name: str) -> str:
    value = token.attrs.get(name)
    return "" if value is None else str(value)
