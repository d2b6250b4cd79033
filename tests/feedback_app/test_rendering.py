"""Markdown as a tree: what is shown, what is not let through, and what it may cost."""

from __future__ import annotations

import re
import runpy
import time
from pathlib import Path

import pytest

from feedback_app import rendering, rendering_code, rendering_math
from feedback_app.rendering import MAX_CHARACTERS, MAX_SECONDS, is_link, plain, size, tree

HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))["HOSTILE"]
RENDER_JS = (Path(rendering.__file__).parent / "pages" / "render.js").read_text(encoding="utf-8")


def words(nodes) -> str:
    return "".join(node if isinstance(node, str) else words(node[2]) for node in nodes)


def nodes_of(nodes):
    for node in nodes:
        if not isinstance(node, str):
            yield node
            yield from nodes_of(node[2])


def first(nodes, tag):
    return next(node for node in nodes_of(nodes) if node[0] == tag)


def depth(nodes) -> int:
    return max((1 + depth(node[2]) for node in nodes if not isinstance(node, str)), default=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *b* **c** ~~d~~ `e`", [["p", {}, ["a ", ["em", {}, ["b"]], " ", ["strong", {}, ["c"]], " ",
                                             ["s", {}, ["d"]], " ", ["code", {}, ["e"]]]]]),
        ("# Title", [["h3", {}, ["Title"]]]),
        ("one\ntwo", [["p", {}, ["one", ["br", {}, []], "two"]]]),
        ("3. x\n4. y", [["ol", {"start": "3"}, [["li", {}, ["x"]], ["li", {}, ["y"]]]]]),
        ("- x", [["ul", {}, [["li", {}, ["x"]]]]]),
        ("> q", [["blockquote", {}, [["p", {}, ["q"]]]]]),
        ("---", [["hr", {}, []]]),
        ("", []),
        ("$5 and $10", [["p", {}, ["$5 and $10"]]]),
    ],
)  # fmt: skip
def test_markdown_becomes_nodes(text, expected):
    assert tree(text) == expected


def test_tables_keep_their_alignment_and_all_their_cells():
    table = first(tree("| a | b |\n|---|--:|\n| 1 | 2 |"), "table")
    assert first([table], "td") == ["td", {}, ["1"]]
    assert ["td", {"class": "rt-right"}, ["2"]] in list(nodes_of([table]))
    longer = "| a | b |\n|---|---|\n| 1 | 2 | hidden |"
    assert tree(longer) == plain(longer)


def test_code_is_coloured_and_unchanged():
    code = "def f(x):\n    return 'a'  # why"
    nodes = tree(f"```python\n{code}\n```")
    assert words([first(nodes, "pre")]) == code
    assert ["span", {"class": "rt-k"}, ["def"]] in list(nodes_of(nodes))
    assert first(nodes, "div") == ["div", {"class": "rt-lang"}, ["python"]]
    assert first(tree("```brainfuck\n+++\n```"), "code")[2] == ["+++"]


@pytest.mark.parametrize("source", ["$x^2$", "\\(x^2\\)", "$$x^2$$", "\\[\nx^2\n\\]", "\\[ x^2 \\]"])
def test_latex_becomes_mathml(source):
    assert first(tree(source), "msup") == ["msup", {}, [["mi", {}, ["x"]], ["mn", {}, ["2"]]]]


@pytest.mark.parametrize(
    "source",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\def\a{\b\b}\def\b{\a\a}\a",
        r"\newcommand{\x}{\x\x}\x",
        r"\phantom{secret}",
        r"a % secret",
        r"\rule{99em}{99em}",
        r"\hspace{-99em}x",
        r"\style{position:fixed}{x}",
        "{" * 60 + "x" + "}" * 60,
        r"\frac{1",
    ],
)
def test_a_formula_that_hides_defines_or_leads_away_is_shown_as_its_source(source):
    assert first(tree(f"before ${source}$ after"), "code") == ["code", {"class": "rt-tex"}, [f"${source}$"]]


@pytest.mark.parametrize(
    "text",
    [
        "[label]: http://evil.example 'never shown by Markdown'",
        "[//]: # (a comment)",
        "<!-- a comment -->",
        "![alt](http://evil.example/x.png 'a title')",
        "[text](http://evil.example 'a title')",
    ],
)
def test_nothing_that_was_written_is_hidden(text):
    written = re.findall(r"\w+", text)
    shown = words(tree(text))
    assert [word for word in written if word not in shown] == []


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JAVASCRIPT:alert(1)",
        "java\tscript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.example",
        "/logout",
        "ftp://x.example",
        "http:",
        "x",
        "",
    ],
)
def test_only_web_and_mail_addresses_are_links(address):
    assert not is_link(address)
    assert not [node for node in nodes_of(tree(f"[text](<{address}>) <{address}>")) if node[0] == "a"]


def test_a_link_says_where_it_leads_and_an_image_is_never_one():
    nodes = tree("[bank](https://evil.example/x) ![cat](https://evil.example/cat.png)")
    assert first(nodes, "a") == ["a", {"href": "https://evil.example/x"}, ["bank"]]
    assert words(nodes).count("https://evil.example/x") == 1
    assert "Image: cat https://evil.example/cat.png" in words(nodes)
    assert len([node for node in nodes_of(nodes) if node[0] == "a"]) == 1


def test_every_tree_holds_only_listed_tags_and_attributes():
    allowed = {**rendering.TAGS, **rendering_math.TAGS}
    classes = {"rt-plain", "rt-scroll", "rt-lang", "rt-url", "rt-image", "rt-tex", "rt-center", "rt-right"}
    for text in HOSTILE:
        for tag, attributes, _ in nodes_of(tree(text, cached=False)):
            assert set(attributes) <= allowed[tag]
            assert attributes.get("class", "rt-plain") in classes | rendering_code.CLASSES
            assert is_link(attributes.get("href", "https://x"))


def test_the_page_knows_the_same_tags():
    """A tag or attribute that only one side knows is either lost or unchecked."""

    def listed(name: str) -> dict[str, set[str]]:
        block = re.search(rf"const {name} = \{{(.*?)\n\}};", RENDER_JS, re.DOTALL)
        assert block is not None
        pairs = re.findall(r"(\w+): \[([^\]]*)\]", block[1])
        return {tag: set(re.findall(r'"(\w+)"', attributes)) for tag, attributes in pairs}

    assert listed("RENDER_TAGS") == {tag: set(names) for tag, names in rendering.TAGS.items()}
    assert listed("RENDER_MATH") == {tag: set(names) for tag, names in rendering_math.TAGS.items()}
    assert "innerHTML" not in RENDER_JS
    assert "insertAdjacentHTML" not in RENDER_JS


DEEP = [
    ">" * 2000 + " x",
    "- " * 2000 + "x",
    "[" * 2000 + "x" + "](http://a)" * 2000,
    "*" * 2000 + "x",
    "(" * 2000,
]


@pytest.mark.parametrize("text", DEEP, ids=["quotes", "lists", "links", "emphasis", "brackets"])
def test_two_thousand_levels_are_shown_flat(text):
    nodes = tree(text, cached=False)
    assert depth(nodes) <= rendering.MAX_DEPTH + 2
    assert words(nodes).count("x") == text.count("x")


HEAVY = [
    "*a",
    "![",
    "[",
    "a|b\n-|-\n",
    "\\begin{align}\n",
    "*_",
    "`",
    "$a$ ",
    "[a](",
    "> - ",
    "<",
    "~~a",
    "&#x41;",
]


@pytest.mark.parametrize("unit", HEAVY)
def test_no_text_costs_more_than_its_bound(unit):
    text = (unit * MAX_CHARACTERS)[:MAX_CHARACTERS]
    before = time.thread_time()
    nodes = tree(text, cached=False)
    # the slack: one rule that is running when the time is up, and a slow machine
    assert time.thread_time() - before < MAX_SECONDS + 1.0
    assert size(nodes) <= rendering.MAX_NODES


def test_a_text_of_100_kilobytes_is_shown_as_it_is():
    text = "# word " * 15_000
    assert tree(text) == plain(text)


@pytest.mark.parametrize(
    "language", ["c", *(name for name, lexer in rendering_code.LANGUAGES.items() if name == lexer)]
)
def test_colours_cost_little_on_hostile_code(language):
    for unit in ("\n", "a ", "<?", "`", "class "):
        code = (unit * rendering.MAX_CODE)[: rendering.MAX_CODE]
        before = time.thread_time()
        rendering_code.highlighted(
            "\n".join(code[i : i + 1999] for i in range(0, len(code), 1999)), language, int
        )
        assert time.thread_time() - before < 1.0


def test_the_cache_returns_the_same_tree_and_stays_small(monkeypatch):
    monkeypatch.setattr(rendering, "_CACHE", rendering._Cache())
    monkeypatch.setattr(rendering, "MAX_CACHED_NODES", 100)
    assert tree("*once*") is tree("*once*")
    for number in range(100):
        tree(f"text {number} *with* nodes")
    assert rendering._CACHE.num_nodes <= 100
    assert sum(cost for _, cost in rendering._CACHE.trees.values()) == rendering._CACHE.num_nodes
    assert "text 99 *with* nodes" in rendering._CACHE.trees
