"""From ratings to examples, and the objective over them: merging changes no loss, members see their own resample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from reward.config import RewardConfig
from reward.data import Pair, Rated, RewardData
from reward.examples import (
    Attribute,
    Attributes,
    Comparison,
    Example,
    Ranking,
    Thumb,
    attributes_of,
    examples_of,
    merge_comparisons,
    merge_scores,
    merge_thumbs,
    posterior_comparisons,
)
from reward.heads import Heads, resampled
from reward.losses import comparison_loss
from reward.objective import Objective
from reward.rows import RankingRow, ScoresRow, ThumbRow
from rlhf.core.errors import ConfigError
from rlhf.core.records import Preference

FAMILY = {"g": "f"}


def pair(chosen: int, rejected: int, **changes: Any) -> Pair:
    values: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b", "group_id": "g"} | changes
    if values.get("tie"):
        values["margin"] = 0
    return Pair(chosen, rejected, Preference.model_validate(values))


def scored(row: int, scores: dict[str, float], rater: str = "a") -> Rated[ScoresRow]:
    values = {"prompt": "p", "completion": "c", "scores": scores, "annotator_id": rater, "group_id": "g"}
    return Rated((row,), ScoresRow.model_validate(values))


def thumb(row: int, label: bool, rater: str = "a") -> Rated[ThumbRow]:
    values = {"prompt": "p", "completion": "c", "label": label, "annotator_id": rater, "group_id": "g"}
    return Rated((row,), ThumbRow.model_validate(values))


def ranked(rows: tuple[int, ...], ranks: list[int], rater: str = "a") -> Rated[RankingRow]:
    values = {
        "prompt": "p",
        "completions": ["c"] * len(ranks),
        "ranks": ranks,
        "annotator_id": rater,
        "group_id": "g",
    }
    return Rated(rows, RankingRow.model_validate(values))


RATINGS = [
    pair(0, 1, weight=2.0, annotator_id="a"),
    pair(1, 0, weight=0.5, annotator_id="b"),
    pair(0, 1, weight=1.0, annotator_id="c", tie=True),
    pair(0, 1, weight=1.5, annotator_id="d", margin=3.0),
    pair(2, 1, weight=1.0, annotator_id="a"),
    pair(1, 2, weight=1.0, annotator_id="b"),
]


def objective(
    kind: str = "bradley-terry", attributes: tuple[Attribute, ...] = (), **changes: Any
) -> Objective:
    config = RewardConfig(pair_loss=kind, **changes)  # type: ignore[arg-type]
    return Objective(config, attributes, torch.device("cpu")).double()


@pytest.mark.parametrize("kind", ["bradley-terry", "davidson", "rao-kupper"])
@pytest.mark.parametrize("use_weights", [True, False])
@pytest.mark.parametrize("margin_scale", [0.0, 0.4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_merged_ratings_are_the_sum_of_single_ones_in_value_and_gradient(
    kind: str, use_weights: bool, margin_scale: float, label_smoothing: float
) -> None:
    examples = merge_comparisons(
        RATINGS,
        FAMILY,
        lambda annotator: 1.0,
        use_weights=use_weights,
        with_ties=True,
        label_smoothing=label_smoothing,
        margin_scale=margin_scale,
    )
    if not margin_scale:
        assert [e.rows for e in examples] == [(0, 1), (1, 2)]
    start = torch.tensor([[0.7], [-0.2], [0.4]], dtype=torch.float64)
    merged, single = start.clone().requires_grad_(), start.clone().requires_grad_()
    total = objective(kind).loss_sum(merged, examples, {0: 0, 1: 1, 2: 2}, centred=False)
    expected = torch.zeros((), dtype=torch.float64)
    for rating in RATINGS:
        said = rating.preference
        outcome = [0.0, 1.0, 0.0] if said.tie else [1 - label_smoothing, 0.0, label_smoothing]
        loss = comparison_loss(
            kind,  # type: ignore[arg-type]
            single[[rating.chosen]],
            single[[rating.rejected]],
            torch.tensor([outcome], dtype=torch.float64),
            torch.tensor([margin_scale * said.margin], dtype=torch.float64),
            torch.zeros((), dtype=torch.float64),
        )
        expected = expected + loss.sum() * (said.weight if use_weights else 1.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    total.backward()
    expected.backward()
    torch.testing.assert_close(merged.grad, single.grad)


def merged(pairs: list[Pair], weigh: Any = lambda annotator: 1.0, **changes: Any) -> list[Comparison]:
    options: dict[str, Any] = {
        "use_weights": True,
        "with_ties": True,
        "label_smoothing": 0.1,
        "margin_scale": 0.0,
    }
    return merge_comparisons(pairs, FAMILY, weigh, **options | changes)


def test_merging_by_hand() -> None:
    (found,) = merged(RATINGS[:3])
    # first wins: 2 * 0.9 + 0.5 * 0.1; tie: 1; second wins: 2 * 0.1 + 0.5 * 0.9; all by 3.5
    assert found.outcome == pytest.approx((1.85 / 3.5, 1 / 3.5, 0.65 / 3.5))
    assert (found.weight, found.family) == (3.5, "f")


def test_raters_count_by_their_weight_and_ties_can_be_left_out() -> None:
    weigh = {"a": 2.0, "b": 0.0, "c": 1.0}.__getitem__
    (found,) = merged(RATINGS[:3], weigh, label_smoothing=0.0)
    # a's win counts 2 * 2, c's tie 1, b is not listened to
    assert found.outcome == pytest.approx((0.8, 0.2, 0.0))
    (found,) = merged(RATINGS[:3], weigh, label_smoothing=0.0, with_ties=False)
    assert found.outcome == (1.0, 0.0, 0.0)
    assert merged(RATINGS[1:2], weigh) == []


def posterior(pairs: list[Pair], weigh: Any = lambda annotator: 1.0, **changes: Any) -> list[Comparison]:
    options: dict[str, Any] = {
        "use_weights": True,
        "with_ties": True,
        "label_smoothing": 0.0,
        "margin_scale": 0.0,
    }
    return posterior_comparisons(pairs, FAMILY, weigh, math.log(3), **options | changes)


def test_posteriors_by_hand() -> None:
    """Raters of weight 1 are right with 3/4 (log-odds ln 3), one of weight 2 with 9/10.

    0 over 1 twice: log-odds ln 9, P = 9/10, of which 8/10 is sure. 2 over 3 once: 3/4, of which 1/2. 4 and 5 were
    chosen once each: nothing. 6 over 7 by one, 7 over 6 by the rater of weight 2: ln 3 for 7, 1/2. The weights 0.8, 0.5
    and 0.5 are scaled to those of all answers, 2 + 1 + 2 + 3 = 8.
    """
    weigh = {"a": 1.0, "b": 1.0, "c": 2.0}.__getitem__
    pairs = [
        *[pair(0, 1, annotator_id="a"), pair(0, 1, annotator_id="b")],
        pair(3, 2, annotator_id="a"),
        *[pair(4, 5, annotator_id="a"), pair(5, 4, annotator_id="b")],
        *[pair(6, 7, annotator_id="a"), pair(7, 6, annotator_id="c")],
    ]
    found = posterior(pairs, weigh)
    assert [e.rows for e in found] == [(0, 1), (2, 3), (6, 7)]
    assert [e.outcome for e in found] == [(1, 0, 0), (0, 0, 1), (0, 0, 1)]
    assert [e.weight for e in found] == pytest.approx([8 * w / 1.8 for w in (0.8, 0.5, 0.5)])
    # smoothing moves a tenth of the winner's share to the other side
    (smooth,) = posterior(pairs[2:3], weigh, label_smoothing=0.1)
    assert smooth.outcome == pytest.approx((0.1, 0, 0.9))


def test_posteriors_keep_ties_margins_and_weights() -> None:
    """Two for 0 (strengths 3 and 1), one tie, one without a say: the tie has 1/3 of the weight, log-odds ln 9 make 0.8
    of the other 2/3 sure. The margin is (3 + 1) / 3 for 0. All say the same of 2 and 3, whose weights are halved."""
    weigh = {"a": 1.0, "b": 1.0, "c": 1.0, "coin": 0.0}.__getitem__
    pairs = [
        *[pair(0, 1, annotator_id="a", margin=3.0), pair(0, 1, annotator_id="b", margin=1.0)],
        *[pair(1, 0, annotator_id="c", tie=True), pair(1, 0, annotator_id="coin", margin=3.0)],
        *[pair(3, 2, annotator_id=name, margin=2.0, weight=0.5) for name in "ab"],
    ]
    one, other = posterior(pairs, weigh, margin_scale=0.5)
    total = 1 / 3 + 0.8 * 2 / 3
    assert one.outcome == pytest.approx((0.8 * 2 / 3 / total, 1 / 3 / total, 0))
    assert one.margin == pytest.approx(0.5 * 4 / 3)
    assert other.margin == pytest.approx(-0.5 * 2)
    assert other.weight / one.weight == pytest.approx(0.8 * 0.5 / total)
    assert one.weight + other.weight == pytest.approx(3 + 2 * 0.5)
    (alone,) = posterior(pairs[:4], weigh, with_ties=False)
    assert alone.outcome == (1, 0, 0)
    # an outvoted rater's strength is no margin against the winner: (1 + 1 - 3) / 3 counts as 0
    outvoted = [pair(0, 1, annotator_id=name, margin=1.0) for name in "ab"]
    outvoted.append(pair(1, 0, annotator_id="c", margin=3.0))
    assert posterior(outvoted, weigh, margin_scale=1.0)[0].margin == 0
    assert posterior([pair(0, 1), pair(1, 0)]) == []


def test_posteriors_need_reliabilities() -> None:
    with pytest.raises(ValueError, match="expected rater_weights dawid-skene or crowd-bt"):
        RewardConfig(rater_labels="posterior")


def test_scores_are_means_of_raters_in_deviations() -> None:
    attributes = (Attribute("help", 3.0, 2.0), Attribute("tone", 1.0, 1.0))
    (found,) = merge_scores(
        [scored(4, {"help": 5}), scored(4, {"help": 4, "tone": 3}, "b")],
        FAMILY,
        lambda annotator: 1.0,
        attributes,
        0.5,
    )
    # help: ((5 - 3) / 2 + (4 - 3) / 2) / 2 = 0.75 from two; tone: (3 - 1) / 1 from one
    assert found.values == (0.75, 2.0)
    assert found.weights == (2.0, 1.0)
    assert found.weight == 1.0  # two raters, at half


def test_an_attribute_that_never_varies_is_left_out() -> None:
    data = RewardData(family=FAMILY)
    data.scores["train"] = [scored(0, {"help": 1, "same": 2}), scored(1, {"help": 4, "same": 2})]
    # mean 2.5, deviation 1.5
    assert attributes_of(data) == (Attribute("help", 2.5, 1.5),)


def test_thumbs_are_shares() -> None:
    (found,) = merge_thumbs(
        [thumb(3, True), thumb(3, False, "b"), thumb(3, True, "c")], FAMILY, lambda annotator: 1.0, 2.0
    )
    assert found == Thumb((3,), 6.0, "f", pytest.approx(2 / 3))


def test_a_ranking_counts_once_and_one_without_order_not_at_all() -> None:
    data = RewardData(family=FAMILY)
    data.rankings["train"] = [ranked((5, 6, 7), [1, 3, 3]), ranked((5, 6), [2, 2])]
    config = RewardConfig()
    found = examples_of(data, "train", config, lambda annotator: 1.0, ())
    assert found == [Ranking((5, 6, 7), 1.0, "f", (0, 1, 1))]


MIXED: list[Example] = [
    Comparison((0, 1), 2.0, "f", (1.0, 0.0, 0.0), 0.0),
    Ranking((0, 1, 2), 1.0, "f", (0, 1, 2)),
    Ranking((2, 0), 1.0, "g", (0, 1)),
    Attributes((2,), 3.0, "g", (0.5,), (1.0,)),
    Thumb((1,), 1.0, "g", 0.25),
]


def test_the_sum_is_that_of_the_parts() -> None:
    outputs = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = {0: 2, 1: 0, 2: 1}
    target = objective(attributes=(Attribute("help", 0.0, 1.0),), center_coef=0.05)
    whole = target.loss_sum(outputs, MIXED, place)
    parts = sum(target.loss_sum(outputs, [example], place).item() for example in MIXED)
    assert whole.item() == pytest.approx(parts, rel=1e-12)
    # the attribute's head is the last column: 3 * (output of row 1 - 0.5)^2
    expected = 3 * (outputs[1, 2].item() - 0.5) ** 2
    assert target.loss_sum(outputs, MIXED[3:4], place).item() == pytest.approx(expected)


def test_a_member_learns_from_its_resample_only() -> None:
    outputs = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    examples = [MIXED[0], Comparison((1, 2), 1.0, "g", (1.0, 0.0, 0.0), 0.0)]
    objective().loss_sum(outputs, examples, {0: 0, 1: 1, 2: 2}, times).backward()
    assert outputs.grad is not None
    # d/ds of -log sigmoid at 0 is 1/2; weight 2 once for member 0, weight 1 twice for member 1; half for the mean
    assert outputs.grad.tolist() == [[-0.5, 0.0], [0.5, -0.5], [0.0, 0.5]]


def test_only_what_is_said_something_about_is_learned() -> None:
    target = objective("davidson")
    assert target.used(MIXED[1:2]) == []
    assert {id(p) for p in target.used(MIXED)} == {id(target.tie_logit), id(target.offset)}
    assert set(target.learned(MIXED[:1])) == {"tie_logit"}
    assert objective().used(MIXED[:1]) == []


def test_resamples_hold_as_many_families_as_there_are() -> None:
    families = [f"f{i}" for i in range(50)]
    found = resampled(families, 3, torch.Generator().manual_seed(0))
    for member in range(3):
        assert sum(times[member] for times in found.values()) == 50
    assert len({tuple(times[m] for times in found.values()) for m in range(3)}) == 3
    assert set(resampled(families, 1, torch.Generator()).values()) == {(1,)}


# ---- heads --------------------------------------------------------------------------------------------------


def data_with_scores(*, pairs: bool) -> RewardData:
    data = RewardData(family=FAMILY)
    data.scores["train"] = [scored(0, {"help": 1, "tone": 2}), scored(1, {"help": 4, "tone": 1})]
    if pairs:
        data.pairs["train"] = RATINGS[:1]
    return data


def test_the_score_is_one_head_whatever_it_is_made_of() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    outputs = hidden @ weight.T
    members = Heads.of(RewardConfig(ensemble=2), data_with_scores(pairs=True))
    assert members.num_outputs == 4
    torch.testing.assert_close(members.scores(outputs), (outputs[:, 0] + outputs[:, 1]) / 2)
    weighted = Heads.of(RewardConfig(attribute_weights={"tone": 2.0}), data_with_scores(pairs=True))
    torch.testing.assert_close(weighted.scores(outputs[:, 1:]), 2 * outputs[:, 3])
    for heads, rows in ((members, weight), (weighted, weight[1:])):
        found = (hidden @ heads.score_weight(rows).T)[:, 0]
        torch.testing.assert_close(found, heads.scores(hidden @ rows.T))


def test_where_there_are_only_attributes_their_mean_is_the_score() -> None:
    heads = Heads.of(RewardConfig(), data_with_scores(pairs=False))
    assert heads.attribute_weights == (0.5, 0.5)
    assert Heads.of(RewardConfig(), data_with_scores(pairs=True)).attribute_weights is None


def test_an_ensemble_needs_something_that_its_members_learn_from() -> None:
    with pytest.raises(ConfigError, match="ensemble is 3, but its members learn from comparisons"):
        Heads.of(RewardConfig(ensemble=3), data_with_scores(pairs=False))


def test_an_unknown_attribute_is_named_with_those_that_are_rated() -> None:
    with pytest.raises(ConfigError, match=r"'toone' is not among .* help, tone"):
        Heads.of(RewardConfig(attribute_weights={"toone": 1.0}), data_with_scores(pairs=True))
