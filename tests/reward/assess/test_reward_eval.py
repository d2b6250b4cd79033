"""`rlhf reward-eval` as a command, on the tiny model with a planted rule: figures, files, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reward.train as reward_train
from reward.assess.config import RewardEvalConfig
from reward.assess.run import run
from reward.config import RewardConfig
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.run import FINISHED, Launch, is_finished, read_manifest

NOUNS = ("cat", "mat", "birds", "man", "tale", "rain", "sun", "order", "number", "ticket")
GATES = (
    *(
        "heldout_accuracy",
        "agreement",
        "accuracy_length",
        "accuracy_bow",
        "lead_over_bow",
        "majority_accuracy",
    ),
    *("ece", "brier", "log_loss", "length_correlation", "accuracy_shorter_better"),
    *("adversarial_accuracy", "consistency_flip_rate", "bias_gap", "longer_excess", "temperature"),
)


def rows() -> list[dict[str, Any]]:
    """Two raters a prompt, who want 'thank you' and not 'sorry'; the second errs now and then. The worse answer is
    longer, so that length alone is wrong."""
    made = []
    for i in range(120):
        a, b = NOUNS[i % 10], NOUNS[i // 10 % 10]
        good, bad = f"the {a} thank you {b}", f"the {a} sorry {b} and {a} and {b}"
        for rater in ("ann", "bob"):
            wrong = rater == "bob" and i % 7 == 0
            chosen, rejected = (bad, good) if wrong else (good, bad)
            made.append(
                {"prompt": f"tell of {a} {i}", "chosen": chosen, "rejected": rejected, "annotator_id": rater}
            )
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A workspace with a finished reward run; tests write beside it only."""
    root = tmp_path_factory.mktemp("reward-eval") / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    (root / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    config = RewardConfig(
        backbone="models/base",
        snapshot=str(root / "preferences.jsonl"),
        num_epochs=2,
        batch_pairs=16,
        near_duplicates=0.0,
        lora={"r": 4, "alpha": 8, "dropout": 0.0},
        optim={"lr": 1e-2, "schedule": "cosine", "warmup_steps": 2},
        model={"device": "cpu"},
    )
    reward_train.run(config, Launch(workspace=root, db="", out=root / "runs" / "reward"))
    return root


@pytest.fixture
def evaluate(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """evaluate(**settings) runs the command and returns its directory."""

    def make(*, force: bool = False, **settings: Any) -> Path:
        values: dict[str, Any] = {
            "reward": "runs/reward",
            "num_probes": 8,
            "model": {"device": "cpu"},
        } | settings
        out = tmp_path / "eval"
        run(RewardEvalConfig(**values), Launch(workspace=trained, db="", out=out, force=force))
        return out

    return make


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "reward_eval.json").read_text())
    return found


def test_the_whole_report(
    evaluate: Callable[..., Path], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.jsonl"
    rows_ = [{"prompt": f"say {n}", "chosen": f"a {n} thank you", "rejected": f"a {n} sorry"} for n in NOUNS]
    bench.write_text("".join(json.dumps(row | {"subset": "rule"}) + "\n" for row in rows_))
    out = evaluate(set=(str(bench),))
    result, metrics = report(out), report(out)["metrics"]
    assert [key for key in GATES if metrics.get(key) is None] == []
    # the same pairs, scores and intervals as the training measured on its test split
    run_metrics = read_manifest(trained / "runs" / "reward").metrics
    for key in ("heldout_accuracy", "heldout_accuracy_low", "agreement", "temperature"):
        assert metrics[key] == pytest.approx(run_metrics[key], abs=1e-5)
    assert metrics["ece"] == pytest.approx(run_metrics["calibration_error"], abs=1e-4)
    assert metrics["heldout_accuracy"] > 0.8
    # the rule can be read off single words, and length is the other way round: 'shorter wins' was fitted
    assert metrics["accuracy_bow"] > 0.8
    assert result["baselines"][0]["what"].startswith("shorter wins")
    assert metrics["accuracy_random"] == 0.5
    assert metrics["set_bench"] > 0.6
    assert {"length", "annotator"} <= {row["kind"] for row in result["slices"]}
    # bob errs in 18 of the 120 prompts (every seventh), in whatever split they are
    assert metrics["rater_conflict_share"] == pytest.approx(18 / 120)
    ann, bob = result["raters"]["rows"]
    assert (ann["num_answers"], ann["weight"], bob["agreement"]) == (120, 1.0, pytest.approx(102 / 120))
    kinds = {row["kind"] for row in result["adversarial"]["kinds"]}
    assert {"empty", "other_prompt", "garbage", "capitals"} <= kinds
    assert "praised" in result["adversarial"]["missing"]  # too long for the tiny context
    assert kinds.isdisjoint(result["adversarial"]["missing"])
    assert {row["kind"] for row in result["bias"]} == {"gender", "origin", "religion", "age"}
    assert metrics["bias_gap"] == max(
        metrics[f"bias_gap_{kind}"] for kind in ("gender", "origin", "religion", "age")
    )
    # scores.jsonl: one row per held-out comparison, whose mean is the accuracy
    scored = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(scored) == metrics["num_pairs"]
    assert sum(row["difference"] > 0 for row in scored) / len(scored) == pytest.approx(
        metrics["heldout_accuracy"]
    )
    assert all((row["probability"] > 0.5) == (row["difference"] > 0) for row in scored)
    assert {row["annotator_id"] for row in scored} == {"ann", "bob"}
    # the page is one file, every picture has words, and no figure is left unformatted
    page = (out / "reward_eval.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=.?http", page)
    assert page.count("<svg") == page.count('role="img" aria-label="') >= 6
    assert "None" not in re.sub(r"<[^>]+>", "", page)
    assert f"{100 * metrics['heldout_accuracy']:.1f} %" in page
    printed = capsys.readouterr().out
    assert f"reward-eval: held-out accuracy {metrics['heldout_accuracy']:.3f} [" in printed
    assert is_finished(out)
    # a finished one is left alone, and says again what it found
    evaluate(set=(str(bench),))
    assert "is already finished: held-out accuracy" in capsys.readouterr().out


def test_a_killed_evaluation_is_made_again(evaluate: Callable[..., Path]) -> None:
    out = evaluate(num_probes=1)
    first = (out / "reward_eval.json").read_bytes()
    (out / FINISHED).unlink()
    (out / "reward_eval.json").unlink()
    assert evaluate(num_probes=1) == out
    assert (out / "reward_eval.json").read_bytes() == first
    with pytest.raises(ConfigError, match="num_probes: 1 -> 2"):
        evaluate(num_probes=2)


def test_an_outside_set_alone_is_enough_for_an_adapter_without_a_run(
    evaluate: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "runs" / "reward" / "adapter", adapter)
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "p", "chosen": "a thank you", "rejected": "a sorry"}\n')
    with pytest.raises(ConfigError, match="--snapshot or --set is required: adapter does not say"):
        evaluate(reward=str(adapter))
    out = evaluate(reward=str(adapter), set=(str(bench),))
    result = report(out)
    assert set(result["metrics"]) >= {"set_bench", "bias_gap"}
    assert "slices" not in result
    assert not (out / "scores.jsonl").exists()
    assert "Outside sets" in (out / "reward_eval.html").read_text()


def test_another_snapshot_says_what_the_model_has_seen_of_it(
    evaluate: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "other"
    snapshot.mkdir()
    for split, part in (("train", rows()[:40]), ("validation", rows()[40:60]), ("test", rows()[60:])):
        (snapshot / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    result = report(evaluate(snapshot=str(snapshot), num_probes=1))
    assert result["metrics"]["num_pairs"] == 180
    assert any(re.search(r"trained on \d+ of the held-out prompts", note) for note in result["notes"])


def bad_snapshot(folder: Path, test: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for split, part in (("train", rows()[:8]), ("validation", rows()[8:12]), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_bad_input_is_named_and_leaves_nothing(
    evaluate: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    ties = [row | {"tie": True, "margin": 0} for row in rows()[-4:]]
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained / "runs" / "reward", unfinished)
    (unfinished / FINISHED).unlink()
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a"}\n')
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"reward": None}, ConfigError, "--reward is required"),
        ({"reward": "runs/nothing"}, DataError, "runs/nothing: no such file or directory"),
        ({"reward": str(unfinished)}, DataError, "unfinished: is an unfinished run"),
        ({"snapshot": str(tmp_path / "no")}, DataError, "no: no such file or directory"),
        (
            {"snapshot": str(bad_snapshot(tmp_path / "empty", []))},
            DataError,
            "no comparison in the test split",
        ),
        (
            {"snapshot": str(bad_snapshot(tmp_path / "ties", ties))},
            DataError,
            "all 4 held-out comparisons are ties",
        ),
        ({"set": (str(bench),)}, DataError, "bench.jsonl:2: 'rejected' is missing"),
        ({"set": (f"{bench},nothing.jsonl",)}, DataError, "nothing.jsonl: no such file or directory"),
        ({"terms": str(bench)}, ConfigError, "bench.jsonl:"),
    ]
    for settings, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            evaluate(**settings)
        assert not (tmp_path / "eval").exists(), settings


def test_a_run_of_another_stage_and_a_snapshot_that_is_gone(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(trained, root)
    (root / "preferences.jsonl").unlink()
    launch = Launch(workspace=root, db="")
    config = RewardEvalConfig(reward="runs/reward", model={"device": "cpu"})
    with pytest.raises(ConfigError, match=r"was trained on preferences\.jsonl, which is gone"):
        run(config, launch)
    manifest = root / "runs" / "reward" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stage": "ppo"}))
    with pytest.raises(DataError, match="holds a ppo run; expected a reward run"):
        run(config, launch)
    assert not (root / "runs" / "reward-eval").exists()
