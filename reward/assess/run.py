"""`rlhf reward-eval`: examine a reward model, as a page for people and as figures for gates.

OUT/reward_eval.html, OUT/reward_eval.json, and OUT/scores.jsonl with every held-out comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from reward.assess.config import RewardEvalConfig
from reward.assess.heldout import HeldOut, load_heldout, prompts_seen
from reward.assess.measure import Gathered, gather, measure, score_rows
from reward.assess.outside import load_set
from reward.assess.page import page
from reward.assess.pool import TextPool
from reward.assess.terms import load_terms
from reward.assess.words import verdict
from reward.score import RewardScorer
from rlhf.core.adapters import base_path
from rlhf.core.backbone import Backbone
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import write_json, write_jsonl, write_text
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import finite
from rlhf.core.run import (
    MANIFEST,
    Launch,
    Manifest,
    Run,
    Workspace,
    content_sha256,
    is_finished,
    read_manifest,
)

REPORT = "reward_eval"


@dataclass(frozen=True)
class Examined:
    """What is examined: the adapter directory, its name, and the manifest of the run where it is in one."""

    folder: Path
    name: str
    manifest: Manifest | None

    @property
    def split_seed(self) -> int | None:
        return None if self.manifest is None else self.manifest.seed

    @property
    def max_tokens(self) -> int | None:
        return None if self.manifest is None else self.manifest.settings.get("max_tokens")


def run(config: RewardEvalConfig, launch: Launch) -> None:
    """Measure, write the three files, and print the verdict in one line."""
    require_one_process("reward-eval")
    examined = find_reward(required(config.reward, "reward", "a reward run or adapter directory"), launch)
    trained_on = _trained_on(examined, launch)
    snapshot = find_path(config.snapshot, launch) if config.snapshot else trained_on
    sets = [find_path(name, launch) for text in config.set for name in text.split(",") if name]
    if snapshot is None and not sets:
        parent = examined.manifest.snapshot if examined.manifest is not None else None
        why = (
            "does not say what it was trained on"
            if parent is None
            else f"was trained on {parent.path}, which is gone"
        )
        raise ConfigError(f"--snapshot or --set is required: {examined.folder} {why}")
    terms_path = find_path(config.terms, launch) if config.terms else None
    terms = load_terms(terms_path)
    out = launch.out or Workspace(launch.workspace).runs / f"{examined.name}-eval"
    parents = {"reward": examined.folder} | {f"set_{i}": path for i, path in enumerate(sets, start=1)}
    parents |= {} if snapshot is None else {"snapshot": snapshot}
    parents |= {} if terms_path is None else {"terms": terms_path}
    # An evaluation that was killed has nothing to continue: it is made again.
    with Run.open(
        out,
        stage="reward-eval",
        settings=config,
        launch=replace(launch, resume=True),
        parents=parents,
        seed=config.seed,
    ) as record:
        if record.finished:
            print(f"reward-eval: {out} is already finished: {verdict(record.manifest.metrics)}")
            return
        scorer = open_scorer(config, examined.folder, launch)
        pool = TextPool(scorer.backbone.codec, scorer.backbone.codec.max_tokens)
        heldout = None
        if snapshot is not None:
            seed = config.seed if examined.split_seed is None else examined.split_seed
            heldout = load_heldout(snapshot, pool, seed=seed, max_tokens=examined.max_tokens)
        found = gather(pool, heldout, [load_set(path, pool) for path in sets], terms, config)
        record.begin()
        scores = pool.score(scorer, config.micro_batch_tokens)
        result = finite(measure(scores, found, scorer.scale, config.seed))
        result["notes"] = _notes(found, examined, snapshot, trained_on)
        result["reward"] = Workspace(launch.workspace).relative(examined.folder)
        result["backbone"] = scorer.backbone.name
        result["num_texts"] = len(pool.rows)
        if heldout is not None:
            write_jsonl(record.path / "scores.jsonl", score_rows(scores, heldout, scorer.scale.temperature))
        write_json(record.path / f"{REPORT}.json", result)
        write_text(record.path / f"{REPORT}.html", page(result, examined.name))
        record.finish(result["metrics"])
    print(f"reward-eval: {verdict(result['metrics'])}; page at {out / f'{REPORT}.html'}")


def find_reward(text: str, launch: Launch) -> Examined:
    """The adapter that was named, or that of the run. Raises DataError for a run that is not finished."""
    named = find_path(text, launch)
    if (named / MANIFEST).is_file() and not is_finished(named):
        raise DataError(f"{named}: is an unfinished run; expected a finished one (continue it with --resume)")
    folder = find_adapter(text, launch)
    directory = folder.parent if (folder.parent / MANIFEST).is_file() else folder
    if directory == folder:
        return Examined(folder, folder.resolve().name, None)
    manifest = read_manifest(directory)
    if manifest.stage != "reward":
        raise DataError(f"{directory}: holds a {manifest.stage} run; expected a reward run")
    return Examined(folder, directory.resolve().name, manifest)


def open_scorer(config: RewardEvalConfig, folder: Path, launch: Launch) -> RewardScorer:
    """The reward model on its backbone. Raises ModelError and CheckpointError."""
    backbone_path = find_model(config.backbone, launch) if config.backbone else base_path(folder, launch)
    backbone = Backbone.load(backbone_path, config.model, name=model_name(backbone_path, launch))
    return RewardScorer.attach(backbone, folder)


def _trained_on(examined: Examined, launch: Launch) -> Path | None:
    """The snapshot of the run's manifest; None where there is none or it is gone."""
    if examined.manifest is None or examined.manifest.snapshot is None:
        return None
    path = Workspace(launch.workspace).resolve(examined.manifest.snapshot.path)
    return path if path.exists() else None


def _notes(found: Gathered, examined: Examined, snapshot: Path | None, trained_on: Path | None) -> list[str]:
    """What a reader has to know about how the figures came about."""
    notes = []
    heldout: HeldOut | None = found.heldout
    if heldout is not None and snapshot is not None:
        if heldout.num_too_long:
            notes.append(
                f"{heldout.num_too_long} of {heldout.num_too_long + len(heldout.pairs)} held-out comparisons were left "
                "out because a text was too long; "
                f"the first is {heldout.first_too_long}."
            )
        parent = examined.manifest.snapshot if examined.manifest is not None else None
        if parent is not None and snapshot == trained_on and content_sha256(snapshot) != parent.sha256:
            notes.append("The snapshot has changed since the model was trained on it.")
        if trained_on is not None and (seen := prompts_seen(heldout, trained_on, examined.split_seed or 0)):
            notes.append(
                f"The model was trained on {seen} of the held-out prompts: its accuracy here flatters it."
            )
        if parent is None:
            notes.append("It is not known what the model was trained on; held-out prompts may be among it.")
    for outside in found.sets:
        if outside.too_long:
            notes.append(
                f"{outside.path.name}: {len(outside.too_long)} rows were left out because a text was too long; "
                f"the first is {Path(outside.too_long[0]).name}."
            )
    return notes
