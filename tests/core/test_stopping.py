"""Stop tokens and stop strings: when a completion ends, and what of it is text."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rlhf.core.backbone import Backbone
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import ConfigError
from rlhf.core.settings import SamplingSettings
from rlhf.core.stopping import StopRule

LoadTiny = Callable[..., Backbone]


@pytest.fixture(scope="module")
def codec(load_tiny: LoadTiny) -> ChatCodec:
    return load_tiny().codec


def rule(codec: ChatCodec, *strings: str, tokens: tuple[str, ...] = ()) -> StopRule:
    return StopRule(codec, SamplingSettings(stop_strings=strings, stop_tokens=tokens))


def byte_tokens(codec: ChatCodec, text: str) -> list[int]:
    """One token for every byte, as a model may well write it."""
    vocabulary, found = codec.tokenizer.get_vocab(), []
    byte_level = codec.tokenizer.backend_tokenizer.pre_tokenizer
    for character in text:
        for letter in "".join(piece for piece, _ in byte_level.pre_tokenize_str(character)):
            found.append(vocabulary[letter])
    assert codec.tokenizer.decode(found) == text
    assert len(found) == len(text.encode())
    return found


def merged_tokens(codec: ChatCodec, text: str) -> list[int]:
    return list(codec.tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of(rule: StopRule, tokens: list[int]) -> int | None:
    """After how many tokens the rule ends a completion, asked after each as the sampler does."""
    ended = rule.ended_by_text
    assert ended is not None
    return next((n for n in range(1, len(tokens) + 1) if ended(tokens[:n])), None)


def test_stop_tokens_stand_beside_the_models_own(codec: ChatCodec) -> None:
    cat = codec.tokenizer.get_vocab()["c"]
    assert rule(codec).token_ids == codec.end_token_ids
    assert rule(codec, tokens=("c", "</s>", "c")).token_ids == (*codec.end_token_ids, cat)
    assert rule(codec, tokens=("c",)).ended_by_text is None


def test_an_unknown_stop_token_is_refused_in_one_line(codec: ChatCodec) -> None:
    with pytest.raises(
        ConfigError, match=r"sampling\.stop_tokens: 'old man' is not a token of .*stop_strings"
    ) as e:
        rule(codec, tokens=("c", "old man"))
    assert "\n" not in str(e.value)


def test_the_token_that_ends_a_completion_is_not_text(codec: ChatCodec) -> None:
    cat = codec.tokenizer.get_vocab()["c"]
    tokens = byte_tokens(codec, "abc")
    assert tokens[-1] == cat
    assert rule(codec, tokens=("c",)).text(tokens) == "ab"
    assert rule(codec).text(tokens) == "abc"
    assert rule(codec).text([*tokens, codec.end_token_id]) == "abc"
    assert rule(codec, tokens=("c",)).text([cat]) == ""
    assert rule(codec).text([]) == ""


@pytest.mark.parametrize("tokenize", [byte_tokens, merged_tokens])
@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [
        ("sat", "the cat sat on", "the cat"),
        ("cat sat", "the cat sat on", "the"),
        ("é", "un café noir", "un caf"),
        ("漢字", "a 漢字 b", "a"),
        ("字", "漢字漢", "漢"),
        ("🙂", "fine 🙂🙂", "fine"),
        ("\n\n", "one\n\ntwo", "one"),
        ("User: ", "hello User: ", "hello"),  # its last character is a space
        ("\nUser:", "\nUser: hi", ""),  # and its first
        (" ", "one two", "one"),
        ("x", "the cat", "the cat"),
        ("THE", "the cat", "the cat"),
    ],
)
def test_stop_strings_end_and_cut(
    codec: ChatCodec, stop: str, text: str, kept: str, tokenize: Callable[..., list[int]]
) -> None:
    """Wherever the borders of tokens and characters fall, a row ends with the token that completes the string."""
    tokens, stops = tokenize(codec, text), rule(codec, stop)
    end = end_of(stops, tokens)
    whole = [stop in codec.tokenizer.decode(tokens[:n]) for n in range(1, len(tokens) + 1)]
    assert end == (whole.index(True) + 1 if any(whole) else None)
    assert (end is not None) == (stop in text)
    assert stops.text(tokens[:end]) == kept
    assert stops.text(tokens) == kept


def test_the_window_finds_what_a_look_at_the_whole_text_finds(codec: ChatCodec) -> None:
    generator = random.Random(0)
    alphabet = ["a", "b", " ", "é", "漢", "🙂"]
    found = 0
    for _ in range(300):
        text = "".join(generator.choices(alphabet, k=12))
        stops = tuple("".join(generator.choices(alphabet, k=generator.randint(1, 3))) for _ in range(2))
        tokens, checked = byte_tokens(codec, text), rule(codec, *stops)
        whole = [
            any(s in codec.tokenizer.decode(tokens[:n]) for s in stops) for n in range(1, len(tokens) + 1)
        ]
        expected = whole.index(True) + 1 if any(whole) else None
        assert end_of(checked, tokens) == expected, (text, stops)
        cut = min((text.find(s) for s in stops if s in text), default=None)
        assert checked.text(tokens[:expected]) == text[:cut].strip()
        found += expected is not None
    assert 50 < found < 250


def test_the_first_of_several_stop_strings_cuts(codec: ChatCodec) -> None:
    tokens = byte_tokens(codec, "red green blue")
    assert rule(codec, "blue", "green").text(tokens) == "red"
    assert end_of(rule(codec, "blue", "green"), tokens) == len("red green")


def test_a_special_token_named_as_a_string_ends_too(load_tiny: LoadTiny) -> None:
    codec = load_tiny().codec
    mark = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert mark not in codec.end_token_ids
    tokens = [*byte_tokens(codec, "hello"), mark]
    stops = rule(codec, "<|im_end|>")
    assert end_of(stops, tokens) == len(tokens)
    assert stops.text(tokens) == "hello"


@pytest.mark.parametrize("settings", [{"stop_strings": ("",)}, {"stop_strings": "abc"}, {"stop_tokens": 3}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stop_"):
        SamplingSettings(**settings)
