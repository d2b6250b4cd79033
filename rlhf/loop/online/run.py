"""`rlhf ppo-people`: reinforcement learning from rewards that people go on correcting (Christiano et al.,
arXiv:1706.03741; Stiennon et al., arXiv:2009.01325; Bai et al., arXiv:2204.05862, section 4.5 on online training).

    part 1: PPO -> pairs of the policy's answers to the desk -> enough answers? -> reward model on all ratings
    part 2: PPO goes on from part 1's policy against the new reward model -> ...

Each part is a run of `rlhf ppo` in OUT/part-01/ppo, whose policy and value head the next one begins with; moments of
the optimizer begin anew, since the reward has changed under them. KL is measured from the backbone throughout. A
process may be killed anywhere and is taken up with --resume: parts, samples, snapshots and reward models that are
finished stay as they are. OUT/adapter is the last part's policy.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

from feedback_app.store.engine import Store
from feedback_app.store.snapshots import export_snapshot
from reward.train import run as run_reward
from rlhf.core.errors import Stopped
from rlhf.core.files import atomic_folder, clear_folders, read_jsonl, write_json, write_jsonl
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_adapter, find_model, find_path, require_one_process, required
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Prompt
from rlhf.core.run import (
    MANIFEST,
    METRICS,
    Launch,
    Run,
    Workspace,
    content_sha256,
    is_finished,
    read_manifest,
)
from rlhf.loop.config import SampleConfig
from rlhf.loop.online.config import OnlineConfig
from rlhf.loop.sample import run as run_sample
from rlhf.ppo.train import run as run_ppo

STAGE = "ppo-people"
ACTOR = "rlhf ppo-people"
FRACTIONS = (0.8, 0.1, 0.1)
_ANSWERED = text(
    "SELECT count(DISTINCT a.annotation_id) FROM current_annotations a "
    "JOIN task_completions tc ON tc.task_id = a.task_id JOIN completions c ON c.completion_id = tc.completion_id "
    "WHERE a.project_id = :project AND NOT a.surplus AND c.model_id = :model"
)


def run(config: OnlineConfig, launch: Launch) -> None:
    """Write OUT/adapter, OUT/parts.json and a folder for each part."""
    require_one_process(STAGE)
    backbone = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
    reward = find_path(required(config.reward, "reward", "a reward run to begin with"), launch)
    prompts = find_path(required(config.prompts, "prompts", "a JSONL of prompts"), launch)
    out = launch.out or Workspace(launch.workspace).runs / STAGE
    init = find_adapter(config.init_adapter, launch) if config.init_adapter else None
    given = {"backbone": Path(backbone), "reward": reward, "prompts": prompts, "init_adapter": init}
    parents = {name: path for name, path in given.items() if path is not None and path.exists()}
    if launch.dry_run:
        print(
            f"{STAGE}: would train {len(config.parts)} parts of at most {config.feedback_every} iterations into {out}"
        )
        return
    with Run.start(
        out, stage=STAGE, settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"{STAGE}: {out} is already finished")
            return
        try:
            with SignalGuard() as guard:
                figures = _Parts(config, launch, record, backbone, guard).train(reward, init, prompts)
        except NotEnoughError as waiting:
            print(f"{STAGE}: {waiting}; continue with --resume when raters have said more")
            return
        record.finish(figures)
    print(
        f"{STAGE}: {figures['num_parts']} parts, {figures['num_refreshed']} new reward models; saved in {out}"
    )


class NotEnoughError(Exception):
    """Raters have not said enough yet: the run is to be taken up later."""


class _Parts:
    """The parts of one run, in their order."""

    def __init__(
        self, config: OnlineConfig, launch: Launch, record: Run, backbone: str, guard: SignalGuard
    ) -> None:
        self.config, self.record, self.backbone, self.guard = config, record, backbone, guard
        self._launch = replace(launch, out=None, resume=False, force=False, dry_run=False)
        self.workspace = Workspace(launch.workspace)

    def train(self, reward: Path, init: Path | None, prompts_path: Path) -> dict[str, Any]:
        """All parts; returns the figures of the run."""
        prompts = list(read_jsonl(prompts_path, Prompt))
        rows: list[dict[str, Any]] = []
        policy = init
        for number, iterations in enumerate(self.config.parts, start=1):
            folder = self.record.path / f"part-{number:02d}"
            self._ppo(folder, number, iterations, reward, policy, prompts_path)
            policy = find_adapter(str(folder / "ppo"), self._launch)
            row = {
                "part": number,
                "reward": self.workspace.relative(reward),
                "answers": 0,
                "refreshed": False,
            }
            row |= self._figures(folder / "ppo")
            if number < len(self.config.parts):
                self._ask(folder, number, prompts)
                row["answers"] = self._answers(folder, policy)
                if row["answers"] >= self.config.min_answers or (folder / "reward" / MANIFEST).exists():
                    reward = self._refresh(folder, number)
                    row["refreshed"] = True
            rows.append(row)
            write_json(self.record.path / "parts.json", rows)
            self._check()
        assert policy is not None
        self._save(policy)
        last = {key: rows[-1][key] for key in ("score", "kl", "length")}
        return last | {"num_parts": len(rows), "num_refreshed": sum(row["refreshed"] for row in rows)}

    def _into(self, out: Path) -> Launch:
        return replace(self._launch, out=out, resume=(out / MANIFEST).exists() and not is_finished(out))

    def _check(self) -> None:
        if self.guard.received is not None:
            raise Stopped(f"{STAGE}: stopped by a signal; continue with --resume", self.guard.received)

    def _ppo(
        self, folder: Path, number: int, iterations: int, reward: Path, policy: Path | None, prompts: Path
    ) -> None:
        filled = {
            "backbone": self.backbone,
            "reward": str(reward),
            "prompts": str(prompts),
            "num_iterations": iterations,
            "init_adapter": None if policy is None else str(policy),
            "seed": self.config.seed + number,
        }
        run_ppo(self.config.ppo.model_copy(update=filled), self._into(folder / "ppo"))

    def _figures(self, ppo: Path) -> dict[str, float]:
        last = read_metrics(ppo / METRICS)[-1]
        return {key: last[key] for key in ("score", "kl", "length")}

    def _ask(self, folder: Path, number: int, prompts: Sequence[Prompt]) -> None:
        """Two answers of the policy to each of the next prompts, as tasks. Twice is once: ids follow content."""
        path = folder / "asked.jsonl"
        if not path.exists():
            first = (number - 1) * self.config.num_pairs
            wanted = min(self.config.num_pairs, len(prompts))
            write_jsonl(path, (prompts[(first + i) % len(prompts)] for i in range(wanted)))
        settings = SampleConfig(
            model_path=str(folder / "ppo"),
            prompts=str(path),
            project=self.config.project,
            overlap=self.config.overlap,
            sampling=self.config.ppo.sampling,
            on_long_prompt=self.config.ppo.on_long_prompt,
            simulated=self.config.simulated,
            model=self.config.ppo.model,
            seed=self.config.seed + number,
        )
        run_sample(settings, self._launch)

    def _answers(self, folder: Path, policy: Path) -> int:
        """How many answers there are on this part's pairs, when there are enough or nobody waits for more.

        Raises Stopped for a signal, and NotEnoughError when it has waited for max_wait_s.
        """
        model = f"{self.workspace.relative(policy)}@{content_sha256(policy)[:10]}"
        began = time.monotonic()
        said = -1
        with Store.open(self._launch.db, create=False) as store:
            while True:
                with store.read() as connection:
                    values = {"project": self.config.project, "model": model}
                    found = int(connection.execute(_ANSWERED, values).scalar_one())
                if found >= self.config.min_answers or self.config.when_few == "go-on":
                    return found
                if (folder / "reward" / MANIFEST).exists():  # there were enough before it was interrupted
                    return found
                if found != said:
                    wanted = f"{self.config.min_answers} in project '{self.config.project}'"
                    print(f"{STAGE}: waiting for raters: {found} answers of {wanted}", flush=True)
                said = found
                self._check()
                limit = self.config.max_wait_s
                if limit is not None and time.monotonic() - began >= limit:
                    raise NotEnoughError(f"{found} answers after {limit:g} s")
                time.sleep(self.config.poll_s)

    def _refresh(self, folder: Path, number: int) -> Path:
        """A reward model from all ratings so far."""
        snapshot, out = folder / "snapshot", folder / "reward"
        if not (snapshot / MANIFEST).exists():
            clear_folders(folder, "snapshot")
            with Store.open(self._launch.db, create=False) as store:
                export_snapshot(
                    store,
                    snapshot,
                    project=self.config.project,
                    seed=self.config.seed,
                    fractions=FRACTIONS,
                    actor=ACTOR,
                )
        filled = {
            "backbone": self.backbone,
            "snapshot": str(snapshot),
            "seed": self.config.seed + number,
        }
        run_reward(self.config.train.model_copy(update=filled), self._into(out))
        accuracy = read_manifest(out).metrics.get("heldout_accuracy")
        print(f"{STAGE}: part {number}: new reward model, held-out accuracy {accuracy}", flush=True)
        return out

    def _save(self, policy: Path) -> None:
        clear_folders(self.record.path, "adapter")
        with atomic_folder(self.record.path / "adapter") as folder:
            shutil.copytree(policy, folder, dirs_exist_ok=True)
