"""Few-shot prompts, word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.core.settings import SamplingSettings
from sft.assess.encode import completion_row, fitting, text_windows
from sft.assess.fewshot import FewShot, choose_join, example_pool
from sft.assess.rows import Item, Text
from sft.assess.subjects import TokenRow
from tests.sft.assess.word_codec import WordCodec

ItemMaker = Callable[..., Item]


def few_shot(codec: WordCodec, pool: Sequence[Item], join: Any, **changes: Any) -> FewShot:
    return FewShot(codec, pool, **{"shots": 1, "join": join, "room": 2, "seed": 0} | changes)  # type: ignore[arg-type]


def test_examples_stand_before_the_prompt_as_the_join_says(item: ItemMaker) -> None:
    pool, asked = [item("2 + 2 =", "4", line=7)], item("3 + 3 =", "6")
    codec = WordCodec()
    shot = few_shot(codec, pool, "blank-line").prompt(asked)
    assert codec.text(shot.ids) == "<s> 2 + 2 = 4 \n\n 3 + 3 ="
    # documents: the example ends with its end token, the prompt begins anew
    shot = few_shot(codec, pool, "end-token").prompt(asked)
    assert codec.text(shot.ids) == "<s> 2 + 2 = 4 </s> <s> 3 + 3 ="
    # where the end token is the bos token, one of them stands between two documents
    codec.completion_ids = lambda text, finished=True: [*codec._ids(text), *([0] if finished else [])]  # type: ignore[method-assign]
    shot = few_shot(codec, pool, "end-token").prompt(asked)
    assert codec.text(shot.ids) == "<s> 2 + 2 = 4 <s> 3 + 3 ="


def test_with_a_chat_template_examples_are_turns_after_the_system_message(item: ItemMaker) -> None:
    system = Message(role="system", content="be brief")
    asked = item("now", "x", prompt=(system, Message(role="user", content="now")))
    codec = WordCodec(chat=True)
    shot = few_shot(codec, [item("then", "y")], "chat").prompt(asked)
    assert codec.text(shot.ids) == "<system> be brief <user> then <assistant> y <user> now"


def test_as_many_examples_as_fit(item: ItemMaker) -> None:
    # The prompt has 3 tokens, the answer gets 2; an example has 2, its separator 1. In 14: (14 - 5) / 3 = 3 examples.
    pool = [item(f"q{i}", f"a{i}", line=i) for i in range(9)]
    few = few_shot(WordCodec(14), pool, "blank-line", shots=8)
    shot = few.prompt(item("one two", "x"))
    assert shot.num_shots == 3
    assert len(shot.ids) == 3 + 3 * 3
    # an example that is too long is passed over for one that fits
    long = item(" ".join("abcdefgh"), "z", line=99)
    assert few_shot(WordCodec(14), [long, pool[0]], "blank-line").prompt(item("one two", "x")).num_shots == 1
    # the answer's reference needs its room too
    assert few.prompt(item("one two", "1 2 3 4 5 6 7 8")).num_shots == 1


def test_examples_are_the_same_every_time_and_others_for_another_prompt(item: ItemMaker) -> None:
    pool = [item(f"q{i}", f"a{i}", line=i) for i in range(30)]
    codec = WordCodec()
    few = few_shot(codec, pool, "blank-line", shots=3)
    first, second = item("one", "x"), item("two", "y")
    assert few.prompt(first) == few_shot(codec, pool, "blank-line", shots=3).prompt(first)
    assert few.prompt(first).ids[:-1] != few.prompt(second).ids[:-1]


def test_no_example_comes_from_the_evaluation_data(item: ItemMaker) -> None:
    held_out = [item("a", "1"), item("b", "2", group_id="g")]
    train = [item("a", "other"), item("c", "3", group_id="g"), item("d", "4")]
    assert [one.prompt[0].content for one in example_pool(train, held_out, "f")] == ["d"]
    with pytest.raises(DataError, match="all 2 demonstrations answer prompts of the evaluation data"):
        example_pool(train[:2], held_out, "f.jsonl")


def test_an_answer_ends_at_a_blank_line_unless_answers_hold_one(item: ItemMaker) -> None:
    plain, broken = [item("q", "a")], [item("q", "a\n\nb")]
    settings = SamplingSettings(stop_strings=("###",))
    assert few_shot(WordCodec(), plain, "blank-line").sampling(settings).stop_strings == ("###", "\n\n")
    assert few_shot(WordCodec(), broken, "blank-line").sampling(settings) is settings
    assert few_shot(WordCodec(), plain, "end-token").sampling(settings) is settings


def test_the_join_is_chosen_on_training_answers(item: ItemMaker) -> None:
    pool = [item(f"q{i}", f"a{i}", line=i) for i in range(4)]
    seen: list[list[TokenRow]] = []

    def base(codec: WordCodec) -> Any:
        def nll(rows: Sequence[TokenRow], title: str) -> list[np.ndarray]:
            seen.append(list(rows))
            # a base that has seen documents: answers after an end token are likelier
            return [np.full(row.num_measured, 1.0 if 1 in row.ids else 2.0) for row in rows]

        return SimpleNamespace(codec=codec, nll=nll)

    options: dict[str, Any] = {"shots": 2, "room": 2, "seed": 0}
    assert choose_join("auto", base(WordCodec()), pool, **options) == (
        "end-token",
        {"blank-line": 2.0, "end-token": 1.0},
    )
    # an example is never its own answer: each row is one prompt with two others before it
    assert all(row.ids.count(row.ids[-1]) == 1 for row in seen[0])
    assert choose_join("blank-line", base(WordCodec()), pool, **options) == ("blank-line", {})
    assert choose_join("auto", base(WordCodec(chat=True)), pool, **options) == ("chat", {})


def test_what_is_measured_of_a_completion_and_of_a_text() -> None:
    codec = WordCodec(max_tokens=4)
    row = completion_row(codec, [0, 5, 6], "yes no")  # type: ignore[arg-type]
    assert (row.start, codec.text(row.ids[3:])) == (3, "yes no")  # without the end token
    # 6 words after <s>, in pieces of 4 tokens: <s> a b c | c d e f, each word once, the end token not
    windows = text_windows(codec, [Text(1, "t", "a b c d e f", "")])  # type: ignore[arg-type]
    assert [codec.text(window.row.ids) for window in windows] == ["<s> a b c", "c d e f"]
    assert sum(window.row.num_measured for window in windows) == 6


def test_prompts_that_leave_no_room_are_counted_and_all_of_them_are_an_error(item: ItemMaker) -> None:
    items = [item("a b", "c"), item("a b c d e", "x"), item("a", "1 2 3 4 5 6 7")]
    codec: Any = WordCodec(max_tokens=6)
    kept, left_out = fitting(items, [codec], 3, "held.jsonl")
    assert ([one.prompt[0].content for one in kept], left_out) == (["a b"], 2)
    with pytest.raises(DataError, match=r"held.jsonl: no prompt leaves 30 tokens .* context of 6"):
        fitting(items, [codec], 30, "held.jsonl")
