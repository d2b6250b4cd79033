"""The work of a round: every step calls the command that a person would, in a run directory of the round.

A step that was interrupted finds its run directory unfinished and goes on in it; one that was done finds it finished.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select

from feedback_app.store.engine import Store
from feedback_app.store.schema import snapshots
from feedback_app.store.snapshots import SnapshotManifest, export_snapshot
from reward.assess.config import RewardEvalConfig
from reward.assess.run import run as run_reward_eval
from reward.train import run as run_reward
from rlhf.core.adapters import read_adapter_config
from rlhf.core.errors import CheckpointError, DataError
from rlhf.core.files import clear_folders
from rlhf.core.inputs import find_model, model_name
from rlhf.core.run import CHECKPOINTS, MANIFEST, Launch, Workspace, is_finished
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.evaluate import run as run_evaluate
from rlhf.loop.people import PEOPLE
from rlhf.loop.registry import Artifact
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.data import training_snapshot, write_prompts
from rlhf.loop.retrain.rounds import Round
from rlhf.ppo.train import run as run_ppo

ACTOR = "rlhf retrain"


class Stages:
    """The steps of one round. Paths are those of the workspace: runs/round-0001/reward and so on."""

    def __init__(self, config: RetrainConfig, launch: Launch, store: Store, current: Round) -> None:
        self.config, self.store, self.round = config, store, current
        self.workspace = Workspace(launch.workspace)
        self._launch = replace(launch, out=None, resume=False, force=False, dry_run=False)
        self.folder = self.workspace.runs / current.name
        self.snapshot = self.workspace.snapshots / current.name
        # Every round draws other completions and other first weights.
        self.seed = config.seed + current.number

    def into(self, name: str) -> Launch:
        """Where a step runs: in its directory of the round, going on with what is unfinished there."""
        out = self.folder / name
        resume = (out / MANIFEST).exists() and not is_finished(out)
        return replace(self._launch, out=out, resume=resume)

    def path(self, name: str) -> Path:
        return self.folder / name

    # ---- the steps ---------------------------------------------------------------------------------------

    def export(self) -> SnapshotManifest:
        """The snapshot of the round; the splits are the same for all rounds, so that no test prompt is learned from."""
        if not (self.snapshot / MANIFEST).exists():
            clear_folders(self.workspace.snapshots, self.round.name)
            export_snapshot(
                self.store,
                self.snapshot,
                project=self.config.project,
                seed=self.config.seed,
                fractions=self.config.snapshot.fractions,
                actor=ACTOR,
            )
        manifest = SnapshotManifest.model_validate_json((self.snapshot / MANIFEST).read_bytes())
        with self.store.read() as connection:
            known = select(snapshots.c.snapshot_id).where(snapshots.c.snapshot_id == manifest.snapshot_id)
            if connection.execute(known).first() is None:
                raise DataError(
                    f"{self.snapshot}: holds a snapshot that this store does not know (of another database, or of "
                    f"one that was restored since); move it and {self.folder} elsewhere"
                )
        return manifest

    def ratings(self, manifest: SnapshotManifest) -> Path:
        """What reward models are trained on: see `training_snapshot`."""
        if not self.path("ratings").exists():
            clear_folders(self.folder, "ratings")
        return training_snapshot(
            self.snapshot, self.path("ratings"), self.config, self.store, manifest.created_at
        )

    def reward(self, ratings: Path) -> Path:
        """The reward model that PPO maximises, from the main part of the prompts."""
        return self._reward("reward", ratings, "main")

    def judge(self, ratings: Path) -> Path:
        """The reward model that PPO never sees, from the other prompts."""
        return self._reward("judge", ratings, "judge")

    def _reward(self, name: str, ratings: Path, part: str) -> Path:
        filled = {
            "backbone": self._backbone,
            "snapshot": str(ratings),
            "prompt_part": part,
            "seed": self.seed,
        }
        run_reward(self.config.reward.model_copy(update=filled), self.into(name))
        return self.path(name)

    def reward_eval(self, reward: Path) -> Path:
        """The examination of the reward model, with its page."""
        settings = RewardEvalConfig(
            reward=str(reward),
            num_probes=self.config.num_probes,
            micro_batch_tokens=self.config.reward.micro_batch_tokens,
            model=self.config.reward.model,
            seed=self.config.seed,
        )
        run_reward_eval(settings, self.into("reward-eval"))
        return self.path("reward-eval")

    def prompts(self, earlier_snapshot: str | None) -> tuple[Path, Path]:
        """(prompts to learn on, prompts to be watched on): those of the settings, or else rated ones."""
        found = []
        for given, split, replay in (
            (self.config.prompts, "train", self.config.warm_start.replay),
            (self.config.eval_prompts, "validation", 0.99),  # all of them, old and new
        ):
            target = self.path(f"{split}_prompts.jsonl")
            if given:
                target = self.find(given)
            elif not target.exists():
                write_prompts(
                    self.snapshot,
                    split,
                    target,
                    store=self.store,
                    earlier_snapshot=earlier_snapshot,
                    replay=replay,
                    seed=self.seed,
                )
            found.append(target)
        return found[0], found[1]

    def ppo(self, reward: Path, judge: Path, champion: Artifact | None, earlier_snapshot: str | None) -> Path:
        """The candidate: a further round of the champion's policy."""
        prompts, eval_prompts = self.prompts(earlier_snapshot)
        adapter = self.adapter_of(champion)
        warm = self.config.warm_start
        filled = {
            "backbone": self._backbone,
            "reward": str(reward),
            "eval_reward": str(judge),
            "prompts": str(prompts),
            "eval_prompts": str(eval_prompts),
            "init_adapter": str(adapter) if adapter and warm.policy == "champion" else None,
            "reference_adapter": str(adapter) if adapter and warm.reference == "champion" else None,
            "seed": self.seed,
        }
        run_ppo(self.config.ppo.model_copy(update=filled), self.into("ppo"))
        return self.path("ppo")

    def evaluate(self, candidate: Path, champion: Artifact | None, judge: Path) -> Path:
        """Candidate against champion on the held-out prompts, as the second reward model sees it."""
        self._compare("evaluate", candidate, champion, str(judge), self.config.heldout)
        return self.path("evaluate")

    def safety(self, candidate: Path, champion: Artifact | None, judge: Path) -> Path:
        """What both answer to the prompts that are looked at for safety; those of `evaluate` where none are given."""
        prompts = self.config.gates.safety_prompts
        if prompts is None:
            return self.path("evaluate")
        self._compare("safety", candidate, champion, str(judge), prompts)
        return self.path("safety")

    def ask_people(self, candidate: Path, champion: Artifact | None) -> Path:
        """Put blind pairs of candidate and champion on the desk, as many as the settings fix; or read what was said."""
        gates = self.config.gates
        out = self.path("people")
        if not is_finished(out):
            self._compare(
                "people",
                candidate,
                champion,
                PEOPLE,
                self.config.heldout,
                max_prompts=gates.people,
                overlap=gates.people_overlap,
            )
        return out

    def tidy(self) -> None:
        """When a round has ended: training states of its finished runs are of no use, and would fill the disk."""
        for name in ("reward", "judge", "ppo"):
            if is_finished(self.path(name)):
                shutil.rmtree(self.path(name) / CHECKPOINTS, ignore_errors=True)

    def _compare(
        self,
        name: str,
        candidate: Path,
        champion: Artifact | None,
        judge: str,
        prompts: str | None,
        **more: int,
    ) -> None:
        settings = {
            "candidate": str(candidate),
            "baseline": str(champion.path) if champion is not None else self._backbone,
            "prompts": str(self.find(prompts or "")),
            "judge": judge,
            "sampling": self.config.sampling,
            "max_prompts": self.config.max_heldout,
            "on_long_prompt": self.config.ppo.on_long_prompt,
            "micro_batch_tokens": self.config.ppo.micro_batch_tokens,
            "model": self.config.ppo.model,
            "seed": self.config.seed,
            **more,
        }
        run_evaluate(EvaluateConfig.model_validate(settings), self.into(name))

    # ---- names -------------------------------------------------------------------------------------------

    @property
    def _backbone(self) -> str:
        return find_model(self.config.backbone or "", self._launch)

    def find(self, text: str) -> Path:
        """A file that the settings name: in the current directory, or else in the workspace."""
        path = Path(text)
        return path if path.is_absolute() or path.exists() else self.workspace.root / text

    def adapter_of(self, champion: Artifact | None) -> Path | None:
        """The champion's policy adapter; None where the champion is the supervised model itself.

        Raises CheckpointError where it sits on another backbone than the one in the settings.
        """
        if champion is None:
            return None
        adapter = champion.path / "adapter"
        if not (adapter / "adapter_config.json").is_file() or (champion.path / "model").is_dir():
            return None
        base = read_adapter_config(adapter).get("base_model_name_or_path")
        expected = model_name(self._backbone, self._launch)
        if base != expected:
            raise CheckpointError(
                f"the champion {champion.artifact_id} sits on the backbone {base!r}, and retrain.yaml names "
                f"{expected!r}; promote a model of that backbone first, or set warm_start.policy to backbone"
            )
        return adapter
