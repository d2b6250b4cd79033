"""Agreement: by hand on small cases, against the published value on real ratings."""

from __future__ import annotations

import json

import pytest

from feedback_app.config import ImportConfig
from feedback_app.importing import import_file
from feedback_app.quality.agreement import agreement, pairwise_agreement
from feedback_app.store.annotations import answer, submit
from feedback_app.store.leases import lease_next

pytestmark = pytest.mark.databases("sqlite", "postgresql")


def test_raw_agreement_leaves_ties_out_and_counts_pairs_of_raters():
    verdicts = [
        ("t1", "a", "first"), ("t1", "b", "first"), ("t1", "c", "second"),  # 3 pairs, 1 agrees
        ("t2", "a", "second"), ("t2", "b", "second"),  # 1 pair, agrees
        ("t3", "a", "tie"), ("t3", "b", "first"),  # no pair with two preferences
        ("t4", "a", "first"),  # one rater only
    ]  # fmt: skip
    found = agreement(verdicts)
    assert (found.n_items, found.n_pairs, found.n_annotators) == (3, 4, 3)
    assert found.raw == pytest.approx(2 / 4)
    assert 0.0 <= found.interval.low <= 0.5 <= found.interval.high <= 1.0


def test_alpha_by_hand():
    """Two raters, four items: agree on first, first, second; disagree once (first, second).

    Both ways round these are eight items: o_11 = o_22 = 6, o_12 = o_21 = 2; n_1 = n_2 = 8, n = 16.
    D_o = 4/16; D_e = 2*8*8/(16*15) = 128/240; alpha = 1 - (4/16)/(128/240) = 0.53125.
    """
    pairs = [("first", "first"), ("first", "first"), ("second", "second"), ("first", "second")]
    verdicts = [
        (f"t{i}", rater, v) for i, pair in enumerate(pairs) for rater, v in zip("ab", pair, strict=True)
    ]
    assert agreement(verdicts).alpha == pytest.approx(0.53125)


def test_undefined_agreement_is_none_not_a_number():
    assert agreement([]).alpha is None
    assert agreement([("t", "a", "first")]).raw is None
    same = agreement([("t", "a", "first"), ("t", "b", "first")])
    assert (same.alpha, same.raw) == (1.0, 1.0)
    assert agreement([("t", "a", "tie"), ("t", "b", "tie")]).alpha is None


def test_alpha_does_not_depend_on_which_completion_comes_first():
    turned = {"first": "second", "second": "first"}
    pairs = [
        ("first", "first"),
        ("second", "second"),
        ("first", "second"),
        ("second", "second"),
        ("tie", "first"),
    ]
    straight = [
        (f"t{i}", rater, v) for i, pair in enumerate(pairs) for rater, v in zip("ab", pair, strict=True)
    ]
    mixed = [(item, rater, turned.get(v, v) if item in ("t1", "t3") else v) for item, rater, v in straight]
    assert agreement(mixed).alpha == pytest.approx(agreement(straight).alpha)


def test_agreement_from_the_store(store, fill, people):
    fill(store, 10, overlap=2)
    for person, verdict in zip(people[:2], ("first", "second"), strict=True):
        while (view := lease_next(store, person, "p")) is not None:
            judgement = answer(view, person, preference=verdict)
            submit(store, judgement, lease_id=view.lease_id, client_key=view.lease_id)
    found = pairwise_agreement(store, "p")
    assert (found.raw, found.n_items, found.n_pairs) == (0.0, 10, 10)
    assert found.alpha < 0


@pytest.mark.databases("sqlite")
def test_agreement_on_real_ratings_is_the_published_one(store, tmp_path, shared_data):
    """PandaLM's test set: 999 pairs, three annotators each; Fleiss' kappa is known to be 0.864."""
    rows = []
    for item in json.loads((shared_data / "pandalm/testset-v1.json").read_text(encoding="utf-8")):
        prompt = f"{item['instruction']}\n\n{item['input']}".strip()
        responses = [f"{item[name]} " for name in ("response1", "response2")]
        if responses[0] == responses[1]:
            responses[1] += " "
        for rater in ("annotator1", "annotator2", "annotator3"):
            said = item[rater]
            chosen, rejected = responses if said != 2 else responses[::-1]
            row = {"prompt": prompt, "prompt_id": f"q{item['idx']}", "chosen": chosen, "rejected": rejected}
            rows.append({**row, "annotator_id": rater, "tie": said == 0})
    path = tmp_path / "pandalm.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = import_file(store, ImportConfig(file=path, project="pandalm"), quarantine=None)
    assert (counts.ratings, counts.tasks, counts.corrected) == (2997, 999, 0)
    found = pairwise_agreement(store, "pandalm")
    assert found.n_items == 999
    assert found.alpha == pytest.approx(0.864, abs=0.002)
    assert found.interval.low < found.raw < found.interval.high
