"""What a round learns from: the snapshot with what is recent counting more, and the prompts that PPO practises on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import text

from feedback_app.store.engine import Store
from rlhf.core.errors import DataError
from rlhf.core.files import atomic_folder, read_jsonl, read_rows, write_jsonl
from rlhf.core.records import Preference
from rlhf.loop.retrain.config import RetrainConfig

DAY_S = 86_400.0
MIN_WEIGHT = 1e-3
TOP = ("train.jsonl", "validation.jsonl", "test.jsonl")
_IDS = text("SELECT annotator_id, name FROM annotators")
_MEMBERS = text("SELECT annotation_id FROM snapshot_members WHERE snapshot_id = :snapshot")


def recency_weight(rated_at: float | None, now: float, half_life_days: float) -> float:
    """0.5 to the number of half-lives since an answer was given; 1 where it is not known when, MIN_WEIGHT at least."""
    if rated_at is None:
        return 1.0
    age_days = max(0.0, now - rated_at) / DAY_S
    return max(MIN_WEIGHT, 0.5 ** (age_days / half_life_days))


def training_snapshot(source: Path, target: Path, config: RetrainConfig, store: Store, now: float) -> Path:
    """The snapshot that reward models are trained on: the exported one, or a copy of it with other weights and
    without the raters that are left out, where the settings ask for that. Made as a whole or not at all.

    now: when the snapshot was exported, so that the weights are the same when a round is taken up again. Raises
    DataError for a rater that nobody knows.
    """
    excluded = _excluded(config.snapshot.exclude, store)
    half_life = config.snapshot.half_life_days
    if half_life is None and not excluded:
        return source
    if target.exists():
        return target
    with atomic_folder(target) as folder:
        for path in sorted(source.rglob("*")):
            copy = folder / path.relative_to(source)
            if path.is_dir():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix != ".jsonl" or not path.stat().st_size or "trl" in path.relative_to(source).parts:
                shutil.copyfile(path, copy)
                continue
            weighted = half_life if path.name in TOP and path.parent == source else None
            _rewrite(path, copy, excluded, weighted, now)
    return target


def _rewrite(path: Path, copy: Path, excluded: Collection[str], half_life: float | None, now: float) -> None:
    def rows() -> Any:
        for _, row in read_rows(path):
            if row.get("annotator_id") in excluded:
                continue
            if half_life is not None:
                row["weight"] = row.get("weight", 1.0) * recency_weight(row.get("rated_at"), now, half_life)
            yield row

    write_jsonl(copy, rows())


def _excluded(names: Collection[str], store: Store) -> frozenset[str]:
    if not names:
        return frozenset()
    with store.read() as connection:
        ids = {row.name: row.annotator_id for row in connection.execute(_IDS)}
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise DataError(f"snapshot.exclude: there is no rater '{unknown[0]}'; `rlhf users list` shows them")
    return frozenset(ids[name] for name in names)


# ---- prompts ------------------------------------------------------------------------------------------------


def write_prompts(
    snapshot: Path,
    split: str,
    target: Path,
    *,
    store: Store,
    earlier_snapshot: str | None,
    replay: float,
    seed: int,
) -> int:
    """Write the rated prompts of one split: the new ones, and so many of those that `earlier_snapshot` holds that they
    are `replay` of all, drawn by the seed. Returns how many there are.

    Where nothing is new, all earlier ones are written. Raises DataError where the split has none at all.
    """
    members: frozenset[str] = frozenset()
    if earlier_snapshot is not None:
        with store.read() as connection:
            found = connection.execute(_MEMBERS, {"snapshot": earlier_snapshot}).scalars()
            members = frozenset(found)
    path = snapshot / f"{split}.jsonl"
    prompts: dict[str, dict[str, Any]] = {}
    known: set[str] = set()
    for row in read_jsonl(path, Preference) if path.is_file() and path.stat().st_size else ():
        messages = [message.model_dump() for message in row.prompt]
        prompts[row.prompt_id] = {
            "prompt_id": row.prompt_id,
            "prompt": messages,
            "group_id": row.group_id,
            "source": row.source,
        }
        if row.judgement_id in members:
            known.add(row.prompt_id)
    if not prompts:
        raise DataError(f"{path}: holds no rated prompt; give `prompts` and `eval_prompts` in retrain.yaml")
    new = sorted(prompt_id for prompt_id in prompts if prompt_id not in known)
    old = sorted(known)
    if new:
        wanted = round(len(new) * replay / (1 - replay))
        old = sorted(random.Random(seed).sample(old, min(wanted, len(old))))
    chosen = [prompts[prompt_id] for prompt_id in [*new, *old]]
    write_jsonl(target, chosen)
    return len(chosen)


def shown_counts(snapshot: Path) -> dict[str, Any]:
    """The counts of an exported snapshot, for reports."""
    manifest = json.loads((snapshot / "manifest.json").read_text(encoding="utf-8"))
    return {
        "counts": manifest["counts"],
        "left_out": manifest["left_out"],
        "simulated": manifest["simulated"],
    }
