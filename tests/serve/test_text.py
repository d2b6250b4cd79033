"""Parts of a text are certain when they are given out, and joined they are what the codec decodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rlhf.core.backbone import Backbone
from rlhf.serve.text import TextStream


@pytest.fixture(scope="module")
def codec(load_tiny: Callable[..., Backbone]) -> Any:
    return load_tiny().codec


def parts(codec: Any, tokens: list[int], stops: tuple[str, ...] = (), *, strip: bool = True) -> list[str]:
    stream = TextStream(codec, stops, strip=strip)
    return [*(stream.push(token) for token in tokens), stream.finish()]


def ids(codec: Any, text: str) -> list[int]:
    return codec.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_character_of_several_bytes_comes_in_one_part(codec: Any) -> None:
    # The tokenizer knows no euro sign: E2 82 AC are three tokens, and so are the four bytes of the emoji.
    tokens = ids(codec, "a€b🙂")
    assert len(tokens) == 1 + 3 + 1 + 4
    assert parts(codec, tokens) == ["a", "", "", "€", "b", "", "", "", "🙂", ""]


def test_bytes_that_are_no_character_come_at_the_end(codec: Any) -> None:
    tokens = [*ids(codec, "a"), *ids(codec, "€")[:2]]
    assert parts(codec, tokens) == ["a", "", "", codec.decode(tokens)[1:]]


def test_spaces_at_the_ends_wait_for_what_follows(codec: Any) -> None:
    tokens = [token for text in (" ", "a", " ", " ", "b", " ") for token in ids(codec, text)]
    assert parts(codec, tokens) == ["", "a", "", "", "  b", "", ""]
    assert "".join(parts(codec, tokens, strip=False)) == " a  b "


def test_what_may_become_a_stop_string_waits(codec: Any) -> None:
    tokens = [token for text in "xENyEND!" for token in ids(codec, text)]
    assert len(tokens) == 8
    # 'EN' may begin 'END': it comes when 'y' says that it does not
    assert parts(codec, tokens, ("END",)) == ["x", "", "", "ENy", "", "", "", "", ""]
    # the first stop string in the text counts, whichever ends first
    assert "".join(parts(codec, ids(codec, "abcd"), ("cd", "bc"))) == "a"


def test_random_tokens_joined_are_the_decoded_text(codec: Any) -> None:
    generator = random.Random(0)
    for number in range(60):
        tokens = [generator.randrange(len(codec.tokenizer)) for _ in range(40)]
        stops = ("e", " th", "�a")[: number % 4]
        assert "".join(parts(codec, tokens, stops)) == codec.decode(tokens, until=stops)
