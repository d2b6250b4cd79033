"""All figures of an evaluation: the texts are gathered first, scored once, then every measure reads the scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from reward.assess.adversarial import Spoiled, spoil, withstood
from reward.assess.baselines import baselines
from reward.assess.bias import Counterfactual, from_templates, from_texts, gaps
from reward.assess.calibration import calibration
from reward.assess.config import RewardEvalConfig
from reward.assess.consistency import Trial, reformat, steadiness
from reward.assess.heldout import HeldOut, choose_probes
from reward.assess.length import length_bias
from reward.assess.outside import OutsideSet, set_figures
from reward.assess.pool import TextPool
from reward.assess.raters import rater_figures
from reward.assess.slices import slices, worst
from reward.evaluate import (
    attainable_accuracy,
    correctness,
    differences,
    majority_accuracy,
    rater_agreement,
)
from reward.score import RewardScale
from rlhf.core.figures import flat
from rlhf.core.stats import bootstrap_mean
from rlhf.core.terms import Terms

MIN_DEVIATION = 1e-6


@dataclass
class Gathered:
    """What is measured, every text of it in the pool. heldout is None where only outside sets were given.

    trained_raters: what the run's manifest says about the raters of the same snapshot.
    """

    pool: TextPool
    heldout: HeldOut | None
    sets: list[OutsideSet]
    spoiled: list[Spoiled] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    counterfactuals: list[Counterfactual] = field(default_factory=list)
    trained_raters: list[dict[str, Any]] = field(default_factory=list)


def gather(
    pool: TextPool, heldout: HeldOut | None, sets: list[OutsideSet], terms: Terms, config: RewardEvalConfig
) -> Gathered:
    """Make the spoiled, reformatted and swapped texts and put them into the pool."""
    found = Gathered(pool, heldout, sets, counterfactuals=from_templates(terms, pool))
    if heldout is not None:
        probes = choose_probes(heldout.pairs, config.num_probes, config.seed)
        found.spoiled = spoil(probes, pool, config.seed)
        found.trials = reformat(probes, pool)
        found.counterfactuals += from_texts(probes, terms, pool)
    return found


def measure(scores: np.ndarray, found: Gathered, scale: RewardScale, seed: int) -> dict[str, Any]:
    """Everything that goes into reward_eval.json: flat figures under 'metrics', details under a key per section."""
    heldout, unit = found.heldout, deviation(scores, found)
    result: dict[str, Any] = {"metrics": {"score_std": unit}}
    if heldout is not None:
        _heldout_sections(result, scores, found, heldout, scale, seed)
        _probe_sections(result, scores, found, unit, seed)
    bias = gaps(scores, found.counterfactuals, unit, seed)
    result["bias"] = bias.pop("rows")
    result["bias_gap_kind"] = bias.pop("bias_gap_kind")
    result["metrics"] |= bias
    for row in result["bias"]:
        key = f"bias_gap_{row['kind']}"
        if row["counted"]:
            result["metrics"][key] = max(result["metrics"].get(key, 0.0), abs(row["gap"]))
    result["sets"] = [set_figures(scores, outside, seed) for outside in found.sets]
    for figures in result["sets"]:
        name = f"set_{figures['file'].split('.')[0]}"
        while name in result["metrics"]:
            name += "_"
        result["metrics"][name] = figures["macro_accuracy"]
    return result


def deviation(scores: np.ndarray, found: Gathered) -> float:
    """One standard deviation of the scores of the completions that are compared, which gaps and moves are told in."""
    if found.heldout is not None:
        rows = found.heldout.rows
    else:
        rows = np.unique([i for one in found.sets for row in one.rows for i in (*row.chosen, *row.rejected)])
    unit = float(scores[rows].std())
    # A constant score differs by rounding between batches; in any other unit its gaps are 0.
    return unit if unit > MIN_DEVIATION else 1.0


def _heldout_sections(
    result: dict[str, Any],
    scores: np.ndarray,
    found: Gathered,
    heldout: HeldOut,
    scale: RewardScale,
    seed: int,
) -> None:
    """Accuracy beside raters and baselines, slices, length bias, calibration."""
    pool, pairs, decided = found.pool, heldout.pairs, heldout.decided
    correct, groups = correctness(scores, decided), [pair.group_id for pair in decided]
    overall = bootstrap_mean(correct, groups=groups, seed=seed)
    agreement = rater_agreement(pairs, seed)
    metrics = {
        "num_pairs": len(pairs),
        "num_ties": len(pairs) - len(decided),
        "num_prompts": len({pair.group_id for pair in pairs}),
        "num_too_long": heldout.num_too_long,
        **flat("heldout_accuracy", overall),
        **flat("agreement", agreement),
        "accuracy_attainable": None if agreement is None else attainable_accuracy(agreement.mean),
        **flat("majority_accuracy", majority_accuracy(scores, pairs, seed)),
    }
    for name in ("length", "bow"):  # the keys are there although the training split cannot fit a baseline
        metrics |= {**flat(f"accuracy_{name}", None), **flat(f"lead_over_{name}", None)}
    result["baselines"] = []
    fitted = baselines(heldout, pool.num_tokens, pool.completion_tokens)
    for baseline in fitted:
        figures = {
            **flat(f"accuracy_{baseline.name}", baseline.accuracy(groups, seed)),
            **flat(f"lead_over_{baseline.name}", baseline.lead(correct, groups, seed)),
        }
        metrics |= figures
        result["baselines"].append({"name": baseline.name, "what": baseline.text} | figures)
    found_slices = slices(correct, decided, pool.completion_tokens, pool.prompt_tokens, seed)
    lowest = worst(found_slices, overall)
    result["slices"] = [one.as_dict() for one in found_slices]
    result["worst_slice"] = None if lowest is None else lowest.as_dict()
    result["length"] = length_bias(scores, decided, pool.completion_tokens, correct, seed)
    result["calibration"] = calibration(scores, pairs, decided, scale, seed)
    flat_figures = {**result["length"], **result["calibration"]}
    metrics |= {key: value for key, value in flat_figures.items() if not isinstance(value, list)}
    said = [*heldout.train, *heldout.validation, *(pair.preference for pair in pairs)]
    result["raters"] = rater_figures(said, found.trained_raters, seed)
    contradictions = result["raters"]["contradictions"]
    metrics["rater_conflict_share"] = contradictions["conflict_share"]
    metrics["rater_cycle_share"] = contradictions["cycle_share"]
    result["metrics"] |= metrics


def _probe_sections(
    result: dict[str, Any], scores: np.ndarray, found: Gathered, unit: float, seed: int
) -> None:
    """Spoiled and reformatted copies."""
    metrics = result["metrics"]
    result["adversarial"] = withstood(scores, found.spoiled, unit, seed)
    metrics |= _renamed("accuracy", "adversarial_accuracy", result["adversarial"])
    for row in result["adversarial"]["kinds"]:
        metrics[f"adversarial_{row['kind']}"] = row["accuracy"]
    result["consistency"] = steadiness(scores, found.trials, unit, seed)
    metrics |= _renamed("flip_rate", "consistency_flip_rate", result["consistency"])


def _renamed(name: str, new: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {f"{new}{end}": figures[f"{name}{end}"] for end in ("", "_low", "_high")}


def comparison_rows(scores: np.ndarray, heldout: HeldOut, scale: RewardScale) -> list[dict[str, Any]]:
    """One row per held-out comparison for scores.jsonl, in the order of the snapshot."""
    delta = differences(scores, heldout.pairs)
    probabilities = expit(scale.logits(delta))
    rows = []
    for pair, difference, probability in zip(heldout.pairs, delta, probabilities, strict=True):
        said = pair.preference
        names = ("prompt_id", "group_id", "chosen_id", "rejected_id", "annotator_id", "judgement_id")
        rows.append(
            {name: getattr(said, name) for name in names}
            | {
                "tie": said.tie,
                "margin": said.margin,
                "score_chosen": float(scores[pair.chosen]),
                "score_rejected": float(scores[pair.rejected]),
                "difference": float(difference),
                "probability": float(probability),
            }
        )
    return rows
