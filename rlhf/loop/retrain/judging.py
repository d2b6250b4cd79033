"""The gates of a round, asked in order, from what its steps left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedback_app.store.snapshots import SnapshotManifest
from rlhf.core.errors import DataError
from rlhf.core.files import read_jsonl, read_rows
from rlhf.core.inputs import find_path
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Prompt
from rlhf.core.run import METRICS, Launch, read_manifest
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.gates import bias, calibration, data, hacking, movement, reward_accuracy, win_rate
from rlhf.loop.gates.perplexity import perplexity
from rlhf.loop.gates.safety import safety
from rlhf.loop.gates.sequential import look
from rlhf.loop.gates.slices import slices
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.models import ModelPool
from rlhf.loop.people import WAITING, wins_so_far
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.news import News

EVALUATION, PAIRS = "evaluation.json", "pairs.jsonl"


def data_verdicts(found: News, manifest: SnapshotManifest, config: RetrainConfig) -> list[Verdict]:
    """Before anything is trained."""
    decided = sum(counts.rows - counts.ties for counts in manifest.counts.values())
    test = manifest.counts["test"]
    return [
        data.enough(found, decided, test.rows - test.ties, config.gates),
        data.raters_agree(found, config.trigger),
        data.raters_one_by_one(found, config.gates),
    ]


def reward_verdicts(
    reward: Path,
    examination: Path,
    champion_reward: Path | None,
    snapshot: Path,
    config: RetrainConfig,
    launch: Launch,
) -> list[Verdict]:
    """Of the new reward model, before a policy is trained against it."""
    gates = config.gates
    settings = config.reward
    rewards = [path for path in (champion_reward, reward) if path is not None]
    try:
        history = reward_accuracy.measure(
            rewards, snapshot, launch, settings.model, settings.micro_batch_tokens
        )
        found = [reward_accuracy.reward_accuracy(history, gates.accuracy_drop)]
    except DataError as error:
        found = [Verdict("reward accuracy", False, f"cannot be measured: {error}")]
    examined = json.loads((examination / "reward_eval.json").read_text(encoding="utf-8"))
    if gates.max_calibration_error is not None:
        found.append(calibration.calibration(examined["metrics"], gates.max_calibration_error))
    if gates.max_bias_gap is not None:
        found.append(bias.bias_gap(examined, gates.max_bias_gap))
    return found


@dataclass(frozen=True)
class PolicyFiles:
    """Where the steps of a round left what is judged: run directories. heldout, safety_prompts: what was asked."""

    ppo: Path
    judge: Path
    evaluation: Path
    safety: Path
    heldout: Path
    safety_prompts: Path


def policy_verdicts(
    files: PolicyFiles, config: RetrainConfig, launch: Launch, people: Verdict | None
) -> list[Verdict]:
    """Of the candidate. people: their verdict, where they were asked and it decides."""
    gates = config.gates
    figures = json.loads((files.evaluation / EVALUATION).read_text(encoding="utf-8"))
    pairs = [row for _, row in read_rows(files.evaluation / PAIRS)]
    prompts = asked(files.heldout, pairs)
    judge = read_manifest(files.judge).metrics
    provisional = gates.people > 0
    by_judge = win_rate.by_judge(figures, judge, gates.min_win_rate, provisional=provisional)
    found = [people if people is not None else by_judge]
    if gates.max_kl is not None:
        found.append(movement.kl_budget(figures, figures["num_prompts"], gates.max_kl))
    if gates.max_length_change is not None:
        found.append(movement.length_change(figures, gates.max_length_change))
    if gates.hacking:
        best = int(read_manifest(files.ppo).metrics["best_iteration"])
        found.append(hacking.reward_hacking(read_metrics(files.ppo / METRICS), best))
    found.append(slices(pairs, prompts, gates.slice_by, gates.max_slice_fall, gates.min_slice))
    if gates.safety_rules or gates.safety_classifier:
        found.append(_safety(files, config, launch))
    if gates.general_text is not None and gates.max_perplexity_ratio is not None:
        pool = ModelPool(config.ppo.model, launch)
        text = find_path(gates.general_text, launch)
        tokens = config.ppo.micro_batch_tokens
        found.append(perplexity(pool.generator(str(files.ppo)), text, gates.max_perplexity_ratio, tokens))
    return found


def asked(path: Path, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Prompt]:
    """prompt id -> prompt. Raises DataError where one that was answered is not in the file any more."""
    prompts = {prompt.prompt_id: prompt for prompt in read_jsonl(path, Prompt)}
    gone = next((row["prompt_id"] for row in pairs if row["prompt_id"] not in prompts), None)
    if gone is not None:
        raise DataError(f"{path}: prompt {gone}, which this round was compared on, is not there any more")
    return prompts


def _safety(files: PolicyFiles, config: RetrainConfig, launch: Launch) -> Verdict:
    gates = config.gates
    pairs = [row for _, row in read_rows(files.safety / PAIRS)]
    prompts = asked(files.safety_prompts, pairs)
    rules = find_path(gates.safety_rules, launch) if gates.safety_rules else None
    return safety(pairs, prompts, rules, gates.safety_classifier, gates.max_unsafe_rise)


def people_verdict(out: Path, config: RetrainConfig, launch: Launch) -> Verdict:
    """What people have said so far about the pairs of a round; see `rlhf.loop.gates.sequential`.

    A pair counts once all of its answers are in: a mean that still changes would be two bets on one pair. Raises
    DataError where what was asked is gone.
    """
    path = out / WAITING
    if not path.is_file():
        raise DataError(f"{path}: no such file, which says what people were asked")
    waiting = json.loads(path.read_text(encoding="utf-8"))
    evaluate = EvaluateConfig(overlap=config.gates.people_overlap)
    wins, _ = wins_so_far(waiting, evaluate, launch, complete_only=True)
    found = look(list(wins.values()), len(waiting["pairs"]), config.gates.people_error)
    return win_rate.by_people(found, int(waiting["figures"]["num_judges"]))
