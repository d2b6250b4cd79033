"""Cleaning and boilerplate: what changes, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.core.errors import ConfigError
from sft.prepare.boilerplate import Boilerplate, load_patterns
from sft.prepare.clean import Cleaner, nfc, one_whitespace, without_control
from sft.prepare.rows import Sample


def test_unicode_has_one_form() -> None:
    assert nfc("cafe\u0301") == "caf\u00e9"
    assert nfc("plain") == "plain"


def test_control_characters_go_and_what_scripts_need_stays() -> None:
    assert without_control("a\x07b\x1b[0m\u200bc\ufeff\u202ed\xad") == "ab[0mcd"
    kept = "tab\tline\nemoji 👩\u200d👩\u200d👧 \u0646\u200c\u0647 \u200fright"
    assert without_control(kept) == kept


def test_whitespace_has_one_form_and_code_keeps_its_own() -> None:
    assert one_whitespace("\n\na \u00a0b \r\n\r\n\r\n\r\nc\t\n") == "a  b\n\nc"
    code = "    def f(x):\n\treturn  x"
    assert one_whitespace(code) == code


def test_rows_that_a_step_changed_are_counted_once() -> None:
    cleaner = Cleaner(unicode=True, control=True, whitespace=False)
    turns = [{"role": "user", "content": "e\u0301 e\u0301"}, {"role": "assistant", "content": "e\u0301\x07 "}]
    sample = Sample(messages=turns)
    cleaner.apply(sample)
    cleaner.apply(Sample(text="nothing to do"))
    assert sample.answer == "\u00e9 "
    assert dict(cleaner.counts) == {"unicode": 1, "control": 1}


def apply(text: str, question: str = "q") -> tuple[str | None, str]:
    sample = Sample(messages=[{"role": "user", "content": question}, {"role": "assistant", "content": text}])
    return Boilerplate(load_patterns(None)).apply(sample), sample.answer


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("One.<br/>Two&nbsp;three", "One.\nTwo three"),
        ("<p>One <b>two</b></p>", "One two"),
        ("Keep. This website uses cookies to be better, accept all. Keep too.", "Keep. Keep too."),
        ("Text\nShare this\nmore", "Text\n\nmore"),
        ("Copy code\nx = 1", "\nx = 1"),
        # no boilerplate: code, mathematics, a recipe
        ("```html\n<p>One</p>\n```", "```html\n<p>One</p>\n```"),
        ("if a < b and b > c: use <T>", "if a < b and b > c: use <T>"),
        ("We baked cookies and share this with friends.", "We baked cookies and share this with friends."),
    ],
)
def test_boilerplate_is_cut_out(text: str, after: str) -> None:
    dropped, found = apply(text)
    assert dropped is None
    assert " ".join(found.split()) == " ".join(after.split())


def test_answers_in_which_a_model_speaks_of_itself_are_dropped() -> None:
    assert apply("As an AI language model, I have no opinion.")[0] == "model speaks of itself"
    assert apply("I was trained by OpenAI.")[0] == "model of a company"
    # the question may speak of one
    assert apply("Yes.", question="Are you, as an AI language model, able to see?")[0] is None


def test_people_bring_their_own_patterns(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("- name: mine\n  pattern: foo+\n  replace: '\\1bar'\n")
    boilerplate = Boilerplate(load_patterns(path))
    sample = Sample(text="a FOOO b foo")
    assert boilerplate.apply(sample) is None
    assert sample.text == "a \\1bar b \\1bar"
    assert dict(boilerplate.counts) == {"mine": 1}
    for text, message in (
        ("- name: x\n  pattern: '('\n", "no regular expression"),
        ("- name: x\n  pattern: 'a*'\n", "matches the empty text"),
        ("- name: x\n", r"entry 1: 'pattern' is missing"),
        ("a: b\n", "expected a list"),
        ("[", "broken YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_patterns(path)
