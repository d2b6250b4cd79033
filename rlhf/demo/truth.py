"""How the raters and the reward model do against the true rubric: possible here because the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reward.config import ScoreConfig
from reward.score_file import run as score_file
from rlhf.core.files import read_jsonl, read_rows, write_jsonl
from rlhf.core.records import Preference
from rlhf.core.run import Launch
from rlhf.core.stats import Interval, bootstrap_mean
from rlhf.demo import rubric


def accuracy_against_truth(
    snapshot: Path, reward: Path, folder: Path, launch: Launch
) -> dict[str, Any] | None:
    """Accuracy of raters and reward model on the same held-out comparisons, the true score deciding who is right.

    Comparisons that the rater called a tie, or where both completions have the same true score, are left out.
    The reward model is asked through `rlhf score`. Intervals are bootstrapped over prompt groups. None when no
    comparison is left.
    """
    rows = [row for row in read_jsonl(snapshot / "test.jsonl", Preference) if not row.tie]
    truth = [_true_difference(row) for row in rows]
    decided = [(row, difference) for row, difference in zip(rows, truth, strict=True) if difference]
    if not decided:
        return None
    scores = _reward_scores([row for row, _ in decided], reward, folder, launch)
    groups = [row.group_id for row, _ in decided]
    by_rater = [float(difference > 0) for _, difference in decided]
    by_reward = [
        float((scores[row.chosen_id] - scores[row.rejected_id]) * difference > 0)
        for row, difference in decided
    ]
    return {
        "num_comparisons": len(decided),
        "raters": _figures(bootstrap_mean(by_rater, groups=groups)),
        "reward": _figures(bootstrap_mean(by_reward, groups=groups)),
    }


def _true_difference(row: Preference) -> float:
    prompt = row.prompt[-1].content
    return rubric.score(prompt, row.chosen[-1].content) - rubric.score(prompt, row.rejected[-1].content)


def _reward_scores(rows: list[Preference], reward: Path, folder: Path, launch: Launch) -> dict[str, float]:
    """Completion id -> score, through the command that a user has."""
    texts = {}
    for row in rows:
        for key, completion in ((row.chosen_id, row.chosen), (row.rejected_id, row.rejected)):
            texts[key] = {"prompt": row.prompt[-1].content, "completion": completion[-1].content}
    asked, answered = folder / "heldout_completions.jsonl", folder / "heldout_completions.scored.jsonl"
    write_jsonl(asked, texts.values())
    score_file(
        ScoreConfig(file=str(asked), reward=str(reward)),
        Launch(workspace=launch.workspace, db=launch.db, out=answered, force=True),
    )
    return {key: row["score"] for key, (_, row) in zip(texts, read_rows(answered), strict=True)}


def _figures(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
