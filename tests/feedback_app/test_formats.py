"""Every format that we read: what its rows mean, told by their columns; and what is made of them in the store."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from feedback_app.config import ImportConfig
from feedback_app.formats.detect import Reading, parse_mapping
from feedback_app.importing import describe, import_file
from feedback_app.store.annotations import judgements
from rlhf.core.errors import ConfigError
from rlhf.core.files import BadRow

U, A = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
DIALOGUE = "\n\nHuman: Is tea hot?\n\nAssistant: Often.\n\nHuman: And iced tea?\n\nAssistant: "


def item(row, **options):
    return Reading(**options).item(row)


def said(found):
    """(kind, what was said) of each answer."""
    return [
        (
            a.kind,
            *(
                v
                for v in (a.choice, a.strength, a.tiers, a.scores, a.demonstration, a.thumb)
                if v is not None
            ),
        )
        for a in found.answers
    ]


def pairwise_export(name, value, data=None, **extra):
    result = {"from_name": name, "to_name": "t", "type": name, "value": value}
    data = data or {"prompt": "q", "answer1": "a", "answer2": "b"}
    return {
        "id": 7,
        "data": data,
        "annotations": [{"completed_by": {"email": "ann@x"}, "result": [result], **extra}],
    }


RANKED = {"prompt": "q", "answer_a": "a", "answer_b": "b", "answer_c": "c"}
FEEDBACK = [
    {
        "model": "m1",
        "response": "a",
        "annotations": {"helpfulness": {"Rating": "5"}, "truth": {"Rating": "N/A"}},
    },
    {
        "model": "m2",
        "response": "b",
        "annotations": {"helpfulness": {"Rating": "2"}, "truth": {"Rating": "4"}},
    },
]

CASES = {
    "prompt": ({"prompt": "q"}, 0, []),
    "completions": ({"prompt": "q", "completions": ["a", {"text": "b", "model_id": "m"}]}, 2, []),
    "preference": ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}, 2, [("pairwise", 0, 2)]),
    "implicit prompt": (
        {"chosen": [U, A], "rejected": [U, {**A, "content": "go"}]},
        2,
        [("pairwise", 0)],
    ),
    "tie": ({"prompt": "q", "chosen": "a", "rejected": "b", "tie": "true"}, 2, [("pairwise", "tie")]),
    "unpaired": ({"prompt": "q", "completion": "a", "label": "false"}, 1, [("thumbs", "down")]),
    "prompt-completion": ({"prompt": "q", "completion": "a"}, 0, [("demonstration", "a")]),
    "conversation": ({"messages": [U, A]}, 0, [("demonstration", "hello")]),
    "sharegpt turns": (
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        0,
        [("demonstration", "a")],
    ),
    "hh-rlhf": ({"chosen": DIALOGUE + "Never.", "rejected": DIALOGUE + "No idea."}, 2, [("pairwise", 0)]),
    "helpsteer": (
        {"prompt": "q", "response": "a", "helpfulness": 4, "correctness": 0, "verbosity": 2},
        1,
        [("scores", {"helpfulness": {0: 5}, "correctness": {0: 1}, "verbosity": {0: 3}})],
    ),
    "ultrafeedback": (
        {"instruction": "q", "completions": FEEDBACK},
        2,
        [("scores", {"helpfulness": {0: 5, 1: 2}})],
    ),
    "helpsteer2": (
        {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 1},
        2,
        [("pairwise", 1, 1)],
    ),
    "helpsteer3": (
        {
            "context": [U],
            "response1": "a",
            "response2": "b",
            "overall_preference": -2,
            "individual_preference": [{"score": -3, "reasoning": "much kinder"}, {"score": 0}],
        },
        2,
        [("pairwise", 0, 3), ("pairwise", "tie")],
    ),
    "pandalm": (
        {
            "instruction": "q",
            "input": "x",
            "response1": "a",
            "response2": "b",
            "annotator1": 2,
            "annotator2": 0,
        },
        2,
        [("pairwise", 1), ("pairwise", "tie")],
    ),
    "fine-grained": (
        {
            "question": "q",
            "prediction 1": "a",
            "prediction 2": "b",
            "prediction 3": "b",
            "preference": [1, 0, 2],
        },
        2,
        [("pairwise", 0), ("pairwise", "tie")],
    ),
    "label studio pairwise": (pairwise_export("pairwise", {"selected": "left"}), 2, [("pairwise", 0)]),
    "label studio choices": (pairwise_export("choices", {"choices": ["answer2"]}), 2, [("pairwise", 1)]),
    "label studio rating": (
        pairwise_export("rating", {"rating": 4}, {"text": "q", "response": "a"}),
        1,
        [("scores", {"rating": {0: 4}})],
    ),
    "label studio ranker": (
        pairwise_export("ranker", {"ranker": ["answer_c", "answer_a", "answer_b"]}, RANKED),
        3,
        [("ranking", ((2,), (0,), (1,)))],
    ),
    "label studio text": (
        pairwise_export("textarea", {"text": ["so it is"]}, {"prompt": "q"}),
        0,
        [("demonstration", "so it is")],
    ),
    "label studio cancelled": (pairwise_export("pairwise", {"selected": "left"}, was_cancelled=True), 2, []),
    "argilla": (
        {
            "fields": {"instruction": "q", "response1": "a", "response2": "b"},
            "responses": {
                "better": [{"value": "response2", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]
            },
            "suggestions": {"better": {"value": "response1", "agent": "a model"}},
        },
        2,
        [("pairwise", 1), ("pairwise", "tie")],
    ),
    "argilla 1": (
        {
            "fields": {"prompt": "q", "response": "a"},
            "responses": [
                {"user_id": "u1", "status": "submitted", "values": {"quality": {"value": 2}}},
                {"user_id": "u2", "status": "discarded", "values": {"quality": {"value": 5}}},
            ],
        },
        1,
        [("scores", {"quality": {0: 2}})],
    ),
    "argilla ranking": (
        {
            "fields": {"prompt": "q", "response-1": "a", "response-2": "b", "response-3": "c"},
            "responses": {
                "rank": [
                    {"value": [{"value": f"response-{i}", "rank": r} for i, r in ((1, 2), (2, 1), (3, 2))]}
                ]
            },
        },
        3,
        [("ranking", ((1,), (0, 2)))],
    ),
    "argilla columns": (
        {
            "id": "1",
            "prompt": "q",
            "response": "a",
            "good.responses": ["yes"],
            "good.responses.users": ["u1"],
        },
        1,
        [("thumbs", "up")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_means(name):
    row, num_completions, answers = CASES[name]
    found = item(json.loads(json.dumps(row)))
    assert len(found.completions) == num_completions
    assert said(found) == answers


def test_a_dialogue_becomes_turns():
    found = item({"chosen": DIALOGUE + "Never.", "rejected": DIALOGUE + "Sometimes.\nRarely."})
    assert [m.role for m in found.prompt.messages] == ["user", "assistant", "user"]
    assert found.prompt.messages[1].content == "Often."
    assert [c.text for c in found.completions] == ["Never.", "Sometimes.\nRarely."]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same text"),
        ({"prompt": "q", "chosen": "a"}, "'rejected' is missing"),
        ({"prompt": "q", "chosen": True, "rejected": "b"}, "'chosen' is True; expected text"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "expected true or false"),
        ({"prompt": "q", "response": "a", "helpfulness": 5}, "'helpfulness' is 5; expected 0 to 4"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -4}, "from -3 to 3"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "last message is empty"),
        ({"prompt": [{"role": "wizard", "content": "x"}]}, "role 'wizard'"),
        ({"prompt": "q" * 100_001}, "100001 characters"),
        ({"prompt": "q", "answer": "a"}, "'answer' is not a known column"),
        ({"question": "?"}, "found the columns question"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"data": {"picture": "x"}, "annotations": []}, "no prompt among picture"),
        ({"instruction": "q", "completions": [{"annotations": {}}]}, "'response' is missing"),
        ({"prompt": "q", "completions": ["a"] * 10}, "1 to 9"),
    ],
)
def test_rows_that_mean_nothing_say_why(row, part):
    with pytest.raises(BadRow) as caught:
        item(row)
    assert part in str(caught.value)


def test_columns_can_be_renamed_left_out_and_scaled():
    row = {"question": "q", "output": {"text": "a"}, "clarity": "10"}
    options = {
        "mapping": parse_mapping(["prompt=question", "completion=output.text"]),
        "score_columns": ("clarity",),
        "scale": (0.0, 10.0),
    }
    assert said(item(row, **options)) == [("scores", {"clarity": {0: 5}})]
    with pytest.raises(BadRow, match="'clarity' is not a known column"):
        item(row, mapping=parse_mapping(["prompt=question"]), format="prompts", ignored=frozenset({"output"}))
    found = item(row, mapping=parse_mapping(["prompt=question"]), format="prompts", ignored=frozenset({"*"}))
    assert found.prompt.text == "q"
    with pytest.raises(ConfigError, match="expected ours=theirs"):
        parse_mapping(["question"])


@pytest.fixture
def bring(store, tmp_path):
    def _bring(rows, name="brought.jsonl", **settings):
        path = tmp_path / name
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
        return import_file(
            store, ImportConfig(file=path, project="p", **settings), quarantine=tmp_path / "bad"
        )

    return _bring


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_what_was_said_is_in_the_store_once(store, bring, name):
    row, _, answers = CASES[name]
    counts = bring([row])
    assert counts.ratings == len(answers)
    assert sorted(j.kind for j in judgements(store, "p")) == sorted(a[0] for a in answers)
    again = bring([row])
    assert (again.ratings, again.known_ratings, again.corrected) == (0, len(answers), 0)


TASKS = [
    ("pairwise", 3, 3),
    ("ranking", 3, 1),
    ("ranking", 2, 0),
    ("scores", 3, 1),
    ("thumbs", 3, 3),
    ("demonstration", 2, 2),
    ("demonstration", 0, 1),
]


@pytest.mark.parametrize(("task", "num_completions", "num_tasks"), TASKS)
def test_completions_become_tasks_of_the_kind_that_is_asked_for(
    store, bring, task, num_completions, num_tasks
):
    row = {"prompt": "q", "completions": [f"text {i}" for i in range(num_completions)]}
    rows = [row if num_completions else {"prompt": "q"}]
    counts = bring(rows, task=task)
    assert (counts.tasks, counts.too_few) == (num_tasks, int(not num_tasks))
    assert bring(rows, task=task).tasks == 0
    with store.read() as connection:
        kinds = connection.execute(text("SELECT kind FROM tasks")).scalars().all()
    assert kinds == [task] * num_tasks


def test_rows_of_one_prompt_become_one_ranking(store, bring):
    rows = [f"question {i // 4},text {i},m{i % 4}" for i in range(12)]
    counts = bring("\n".join(["prompt,completion,model_id", *rows]), "a.csv", task="ranking")
    assert (counts.prompts, counts.completions, counts.tasks) == (3, 12, 3)
    with store.read() as connection:
        places = connection.execute(text("SELECT count(*) FROM task_completions GROUP BY task_id"))
        assert places.scalars().all() == [4, 4, 4]


def test_gold_items_come_from_a_file(store, bring):
    rows = [
        {"prompt": "q1", "chosen": "a", "rejected": "b", "explanation": "b is wrong"},
        {"prompt": "q2", "completion": "c", "label": True},
    ]
    counts = bring(rows, gold=True)
    assert (counts.gold, counts.ratings, counts.tasks) == (2, 0, 2)
    bring(rows, gold=True)
    query = text(
        "SELECT t.kind, t.pool, t.is_open, g.expected, g.explanation, c.text FROM gold_items g "
        "JOIN tasks t ON t.task_id = g.task_id JOIN task_completions tc ON tc.task_id = t.task_id "
        "AND tc.position = 0 JOIN completions c ON c.completion_id = tc.completion_id ORDER BY t.kind"
    )
    with store.read() as connection:
        pair, thumb = connection.execute(query).all()
    assert (pair.pool, bool(pair.is_open), pair.explanation) == ("gold", False, "b is wrong")
    expected = pair.expected if isinstance(pair.expected, dict) else json.loads(pair.expected)
    assert expected["preference"] == ("first" if pair.text == "a" else "second")
    assert "up" in str(thumb.expected)


def test_named_score_columns_become_the_rubrics_attributes(store, bring):
    rows = "prompt,completion,clarity,warmth\nq,a,5,1\nq2,b,3,\n"
    counts = bring(rows, "a.csv", score_columns=("clarity", "warmth"))
    assert (counts.ratings, counts.bad_rows) == (1, 1)
    (judgement,) = judgements(store, "p")
    assert {name: list(by.values()) for name, by in judgement.scores.items()} == {
        "clarity": [5],
        "warmth": [1],
    }


def test_a_rating_that_changed_in_the_file_is_a_new_version(store, bring):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "annotator_id": "ann"}
    bring([row])
    counts = bring([{**row, "strength": 3}])
    assert (counts.ratings, counts.corrected) == (0, 1)
    (judgement,) = judgements(store, "p")
    assert (judgement.version, judgement.strength) == (2, 3)


def test_disputes_show_in_imported_ratings_too(store, bring):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "annotator_id": "ann"},
        {"prompt": "q", "chosen": "b", "rejected": "a", "annotator_id": "bob"},
    ]
    bring(rows)
    with store.read() as connection:
        assert connection.execute(text("SELECT dispute, num_done, overlap FROM tasks")).all() == [
            ("open", 2, 2)
        ]


def test_the_summary_names_what_is_missing(bring, tmp_path):
    settings = ImportConfig(file=tmp_path / "brought.jsonl", project="p", task="ranking")
    counts = bring([{"prompt": "q", "completions": ["a", "b"]}, {"nonsense": 1}], task="ranking")
    told = describe(counts, settings, tmp_path / "bad")
    assert "1 prompts have too few or too many completions for a ranking task" in told
    assert "1 bad rows" in told
