"""A newer reward model for a run that goes on: snapshot of all ratings, training as before, the new weights in place.

The settings are those of the reward that the run began with; so the new adapter fits into its roles, below which the
cached trunk stays valid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from feedback_app.store.engine import Store
from feedback_app.store.snapshots import SnapshotManifest, export_snapshot
from reward.config import RewardConfig
from reward.score import RewardScorer
from reward.train import run as train_reward
from rlhf.core.errors import ConfigError
from rlhf.core.run import MANIFEST, Launch, Workspace, is_finished, read_manifest
from rlhf.ppo.rewards import Reward
from rlhf.ppo.rewards.terms import ForeignModelReward, ModelReward


@dataclass(frozen=True)
class RewardOrigin:
    """How the reward of a run was made: its settings, and how its snapshot was split."""

    settings: RewardConfig
    snapshot: SnapshotManifest

    @classmethod
    def of(cls, adapter: Path, workspace: Workspace) -> RewardOrigin:
        """Raises ConfigError where the reward is no finished run of `rlhf reward` on a snapshot of the store."""
        manifest = read_manifest(adapter.parent)
        parent = manifest.parents.get("snapshot")
        if manifest.stage != "reward" or parent is None:
            raise ConfigError(
                f"{adapter.parent}: was not made by `rlhf reward`; feedback_every needs such a run"
            )
        path = workspace.resolve(parent.path) / MANIFEST
        try:
            snapshot = SnapshotManifest.model_validate_json(path.read_text(encoding="utf-8"))
            settings = RewardConfig.model_validate(manifest.settings)
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{path}: the snapshot of {adapter.parent} cannot be read; feedback_every splits the ratings as it did"
            ) from error
        return cls(settings, snapshot)


def renew(
    reward: Reward, origin: RewardOrigin, folder: Path, *, project: str, backbone: str, launch: Launch
) -> Path:
    """Train on all ratings so far, in folder/snapshot and folder/reward, and put the result into `reward`.

    What an interruption left is continued; a finished one is only loaded. Returns the adapter's directory.
    """
    snapshot, out = folder / "snapshot", folder / "reward"
    if not (snapshot / MANIFEST).exists():
        with Store.open(launch.db, create=False) as store:
            export_snapshot(
                store,
                snapshot,
                project=project,
                seed=origin.snapshot.seed,
                fractions=origin.snapshot.fractions,
            )
    settings = origin.settings.model_copy(update={"snapshot": str(snapshot), "backbone": backbone})
    resume = (out / MANIFEST).exists() and not is_finished(out)
    train_reward(settings, replace(launch, out=out, resume=resume, force=False, dry_run=False))
    put(reward, out / "adapter")
    return out / "adapter"


def put(reward: Reward, adapter: Path) -> None:
    """The weights and the scale of a reward directory in place of those of `reward`. Raises CheckpointError."""
    scorer_of(reward).reload(adapter)
    reward.mean, reward.std = scorer_of(reward).scale.mean, scorer_of(reward).scale.std


def scorer_of(reward: Reward) -> RewardScorer:
    """Raises ConfigError where the reward is no adapter that could be renewed."""
    if isinstance(reward, ModelReward | ForeignModelReward):
        return reward.scorer
    raise ConfigError(f"feedback_every renews a reward run; found {reward.name}")
