"""Does the new reward model order held-out comparisons as well as the champion's, and better than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf.core.run import Launch, Workspace, read_manifest
from rlhf.core.settings import ModelSettings
from rlhf.core.stats import Interval
from rlhf.loop.config import RewardHistoryConfig
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.reward_history import History, reward_history
from rlhf.loop.reward_runs import RewardRun

CHANCE = 0.5


def measure(
    rewards: Sequence[Path], snapshot: Path, launch: Launch, model: ModelSettings, max_tokens: int
) -> History:
    """The accuracy of reward runs, the oldest first, on the comparisons of a snapshot's test split whose prompts none
    of them has seen; each one's gain on the one before is paired. Raises DataError where no comparison is left."""
    workspace = Workspace(launch.workspace)
    runs = [RewardRun(path, workspace.relative(path), read_manifest(path)) for path in rewards]
    config = RewardHistoryConfig(model=model, micro_batch_tokens=max_tokens)
    return reward_history(runs, snapshot, config, launch)


def reward_accuracy(history: History, accuracy_drop: float) -> Verdict:
    """Passed where the accuracy is above chance with its whole interval, and the paired difference to the champion's
    reward model is at least -accuracy_drop and not below 0 with its whole interval."""
    newest = history.runs[-1]
    details = {
        "num_comparisons": history.num_comparisons,
        "num_prompts": history.num_prompts,
        "accuracy": list(newest.accuracy),
        "agreement": list(history.agreement) if history.agreement else None,
    }
    shown = _shown(newest.accuracy)
    if newest.accuracy.low <= CHANCE:
        reason = f"orders {shown} of {history.num_comparisons} unseen comparisons as their raters did: not above chance"
        return Verdict.of("reward accuracy", False, reason, newest.accuracy, CHANCE, details=details)
    gain = newest.gain
    if gain is None:
        reason = (
            f"orders {shown} of {history.num_comparisons} unseen comparisons as their raters did; nothing to "
        )
        reason += "compare with" if len(history.runs) == 1 else "compare with: the other's ratings are gone"
        return Verdict.of("reward accuracy", True, reason, newest.accuracy, CHANCE, details=details)
    passed = gain.mean >= -accuracy_drop and gain.high >= 0
    reason = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on the champion's, at {shown}"
    reason += "" if passed else f"; at most {accuracy_drop:.2f} worse is accepted, and nothing beyond chance"
    return Verdict.of("reward accuracy", passed, reason, gain, -accuracy_drop, details=details)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
