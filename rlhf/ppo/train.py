"""PPO for language models (Schulman et al., arXiv:1707.06347; Ziegler et al., arXiv:1909.08593).

    collect   sample completions, measure log-probabilities, values, scores     rlhf.ppo.rollout
    targets   scores and KL to token rewards, GAE, whitening                    rlhf.ppo.rollout, advantages
    update    epochs x minibatches of the clipped surrogate and value loss      rlhf.ppo.update
    log, evaluate on held-out prompts, save

Departures from the papers: one frozen backbone with adapters instead of four models; the value head sits on
the policy's hidden states (`value_adapter` gives it its own); scores are normalised by the reward stage's
mean and deviation unless the run's own are asked for; everything random is a function of (seed, iteration),
so resume needs no generator state. A further round may begin as an earlier policy (`init_adapter`) and measure KL
from one (`reference_adapter`).

Logged per iteration: `score` raw output of the reward, `score/NAME` that of each term of a weighted sum,
`score_normalized` what is maximised (after normalising, clipping and penalties; `score_mean` and `score_std`
are the scale, `score_clip_share` the share that was clipped), `objective` = score_normalized - kl_coef * kl,
`kl` summed k1 per completion in nats,
`kl_k3` its non-negative estimate, `kl_clamp_share` share of tokens whose log-ratio hit the clamp, `kl_coef`,
`length` tokens per completion, `finished` share that ended by an end token, `distinct_2`;
`policy_loss`, `value_loss`, `entropy` (nats per token), `kl_old_new` (k3 per token, how far the updates
went), `clip_share`, `value_clip_share`, `ratio`, `grad_norm` before clipping, `explained_variance` of the
returns by the values, `first_ratio_error` and `sampler_gap` (both should be rounding errors),
`num_optimizer_steps`, `micro_batch_tokens` (falls when memory runs out), `seconds_rollout`, `seconds_update`,
`episodes_per_s`.
Evaluations log the first group as `eval_*` (with the saved scale and the first `kl_coef`, so that they can be
compared), `eval_heldout_score` of the second reward and `eval_alarm` (see `rlhf.ppo.watch`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.core.adapters import (
    VALUE_HEAD_FILE,
    WEIGHTS_FILE,
    load_adapter,
    load_role_tensors,
    load_role_weights,
    load_tensors,
    read_adapter_config,
    role_weights,
    save_policy,
)
from rlhf.core.backbone import Backbone
from rlhf.core.chat import first_line
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.config import Settings
from rlhf.core.errors import CheckpointError, Stopped
from rlhf.core.files import write_jsonl
from rlhf.core.guards import SignalGuard, TokenBudget, require_finite, require_finite_parameters
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, required
from rlhf.core.metrics import progress, read_metrics
from rlhf.core.optim import make_optimizer, make_schedule
from rlhf.core.processes import ALONE, Processes, start_processes
from rlhf.core.randomness import derived_seed
from rlhf.core.run import CHECKPOINTS, METRICS, Launch, Run, Workspace
from rlhf.core.sharding import device_mesh
from rlhf.core.stopping import StopRule
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.evaluate import evaluate, summarize
from rlhf.ppo.kl import KLController, k3
from rlhf.ppo.measure import ANCHOR, POLICY, VALUE
from rlhf.ppo.picture import RunPicture
from rlhf.ppo.prompts import EncodedPrompt, PromptStream, load_prompts
from rlhf.ppo.rewards import Reward, RewardSources, check_prompts
from rlhf.ppo.rollout import RolloutBatch, Targets, collect, make_targets
from rlhf.ppo.scores import ScoreNormalizer
from rlhf.ppo.update import UpdateStats, update
from rlhf.ppo.watch import Watch

# A launcher passes a signal on that its processes may have got already.
LAUNCHER_ECHO_S = 5.0


def run(config: PPOConfig, launch: Launch) -> None:
    """`rlhf ppo`. Writes OUT/adapter, metrics, samples and manifest; see `rlhf.core.run` for what OUT may be.

    Started by `accelerate launch` or `torchrun` it is one process of several: see `rlhf.core.processes`.
    """
    with start_processes(config.model.device) as processes:
        run_with(PPOTrainer, config, config, launch, processes)


def run_with(
    make_trainer: Callable[..., PPOTrainer],
    config: PPOConfig,
    settings: Settings,
    launch: Launch,
    processes: Processes = ALONE,
    *,
    stage: str = "ppo",
) -> None:
    """A run of `PPOTrainer` or of something made of it. settings: those that the run's directory records."""
    model_settings = config.model.model_copy(update={"device": processes.device})
    mesh = device_mesh(processes) if config.shard_base else None
    backbone_path = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
    sources = RewardSources.find(config, launch)
    prompts_path = find_path(required(config.prompts, "prompts", "a JSONL of prompts"), launch)
    eval_path = find_path(config.eval_prompts, launch) if config.eval_prompts else None
    out = launch.out or Workspace(launch.workspace).runs / stage
    adapters = {
        name: find_adapter(text, launch)
        for name, text in (("init", config.init_adapter), ("reference", config.reference_adapter))
        if text
    }

    named = {
        "backbone": Path(backbone_path),
        **{f"{name}_adapter": path for name, path in adapters.items()},
        "prompts": prompts_path,
        "eval_prompts": eval_path,
        **sources.parents,
    }
    parents = {name: path for name, path in named.items() if path is not None and path.exists()}

    def load() -> tuple[Backbone, list[EncodedPrompt], list[EncodedPrompt], Reward, Reward | None]:
        backbone = Backbone.load(backbone_path, model_settings, name=model_name(backbone_path, launch))
        if mesh is not None:
            backbone.shard(processes, mesh, [POLICY, VALUE] if config.value_adapter else [POLICY])
        StopRule(backbone.codec, config.sampling)  # refuses a stop token that the model does not have
        if "reference" in adapters:
            load_adapter(backbone, ANCHOR, adapters["reference"], base_name=backbone.name, scalar_head=False)
        prompts = _read_prompts(prompts_path, backbone, config)
        eval_prompts = _read_prompts(eval_path, backbone, config) if eval_path else []
        reward, eval_reward = sources.load(backbone, launch)
        check_prompts(reward, [encoded.prompt for encoded in [*prompts, *eval_prompts]])
        if eval_reward is not None:
            check_prompts(eval_reward, [encoded.prompt for encoded in eval_prompts])
        return backbone, prompts, eval_prompts, reward, eval_reward

    if launch.dry_run:
        backbone, prompts, *_ = load()
        episodes = config.num_iterations * config.num_prompts * config.samples_per_prompt
        print(
            f"{stage}: would sample {episodes} completions for {len(prompts)} prompts from {backbone.name} into {out}"
        )
        return
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with _open_run(out, stage, settings, config.seed, launch, parents, processes) as record:
        if record.finished:
            processes.say(f"{stage}: {out} is already finished")
            return
        with processes.together():
            backbone, prompts, eval_prompts, reward, eval_reward = load()
            record.begin()
        longest = max(len(encoded.ids) for encoded in [*prompts, *eval_prompts])
        max_tokens = longest + config.sampling.max_completion_tokens
        trainer = make_trainer(
            backbone, reward, config, max_tokens=max_tokens, eval_reward=eval_reward, processes=processes
        )
        processes.say(f"{stage}: {trainer.trunk_note}")
        if "init" in adapters:
            trainer.begin_as(adapters["init"])
        train(trainer, PromptStream(prompts, config.seed), eval_prompts, record)


def train(
    trainer: PPOTrainer, stream: PromptStream, eval_prompts: Sequence[EncodedPrompt], record: Run
) -> None:
    """The loop: one iteration is one rollout with its updates. Resumes from the newest valid checkpoint.

    All processes go through it; what is written, rank 0 writes.
    """
    config, processes, stage = trainer.config, trainer.processes, trainer.stage
    checkpoints = StateCheckpoints(record.path / CHECKPOINTS, stage, keep=config.keep_checkpoints)
    with processes.together():
        state = checkpoints.newest() if record.resuming and processes.is_main else None
    if (state := processes.from_main(state)) is not None:
        trainer.load_state_dict(state)
    picture = RunPicture(record.path, config, stage)
    if processes.is_main:
        # Row 0 is the evaluation before training; it is written again when nothing has been trained yet.
        record.metrics.truncate_after(trainer.iteration or -1)
    boundary = trainer.state_dict()
    with (
        SignalGuard(echo_s=LAUNCHER_ECHO_S if processes.size > 1 else 0.0) as guard,
        progress(
            "iterations", trainer.expected_iterations, stage=stage, silent=not processes.is_main
        ) as tracker,
    ):
        tracker.advance(trainer.iteration)
        try:
            if trainer.iteration == 0 and eval_prompts:
                # The boundary stays the one before it: a run that is stopped at 0 evaluates again.
                figures = trainer.evaluate(eval_prompts, record, guard.check)
                if processes.is_main:
                    record.metrics.log(0, **figures)
            while trainer.iteration < config.num_iterations and not trainer.watch.ended:
                started = time.perf_counter()
                batch = trainer.collect(stream, guard.check)
                targets = trainer.targets(batch)
                collected = time.perf_counter()
                stats = trainer.update(batch, targets, guard.check)
                seconds = {"rollout": collected - started, "update": time.perf_counter() - collected}
                figures = trainer.figures(batch, targets, stats, seconds)
                trainer.finish_iteration(figures["kl"], len(batch.texts))
                # What ends a run here (a budget) ends it with an evaluation: the last policy may be the best.
                last = trainer.iteration == config.num_iterations or bool(trainer.watch.ended)
                if eval_prompts and (last or trainer.iteration % config.eval_every == 0):
                    figures |= trainer.evaluate(eval_prompts, record, guard.check)
                with processes.together():
                    if processes.is_main:
                        record.metrics.log(trainer.iteration, **figures)
                        if "eval_score" in figures:
                            picture.draw(trainer.best_iteration)
                tracker.advance(score=figures["score"], kl=figures["kl"], length=figures["length"])
                boundary = trainer.state_dict()
                last = last or bool(trainer.watch.ended)
                if last or trainer.iteration % config.save_every == 0:
                    with processes.together():
                        if processes.is_main:
                            checkpoints.save(trainer.iteration, boundary)
        except Stopped:
            # The state at the last boundary, held in memory: the unfinished iteration is replayed on resume.
            # Nobody leaves before it is saved: a launcher ends all processes as soon as one has gone.
            with processes.together():
                if processes.is_main:
                    checkpoints.save(boundary["iteration"], boundary)
            raise
    if trainer.watch.ended and trainer.iteration < config.num_iterations:
        processes.say(
            f"{stage}: ended at iteration {trainer.iteration} of {config.num_iterations}: {trainer.watch.ended}"
        )
    trainer.restore_best()
    with processes.together():
        if processes.is_main:
            _finish(trainer, record, picture)


def _finish(trainer: PPOTrainer, record: Run, picture: RunPicture) -> None:
    """Write what the run was for: the adapter, the last picture, the manifest with the last figures."""
    trainer.save(record.path)
    picture.draw(trainer.best_iteration, final=True)
    final = read_metrics(record.path / METRICS)[-1]
    record.finish(final | {"best_iteration": trainer.best_iteration} | trainer.final_figures())
    print(
        f"{trainer.stage}: saved the policy of iteration {trainer.best_iteration} in {record.path / 'adapter'}"
    )


def _open_run(
    out: Path,
    stage: str,
    settings: Settings,
    seed: int,
    launch: Launch,
    parents: dict[str, Path],
    processes: Processes,
) -> Run:
    """`Run.open` by rank 0; the others follow its answer."""
    record, found = None, None
    with processes.together():
        if processes.is_main:
            record = Run.open(out, stage=stage, settings=settings, launch=launch, parents=parents, seed=seed)
            found = (record.path, record.finished, record.resuming)
    path, finished, resuming = processes.from_main(found) or (out, False, False)
    return record or Run.follow(path, finished=finished, resuming=resuming)


class PPOTrainer:
    """Everything that changes while PPO runs, and the steps of one iteration.

    A script of one's own makes one and calls `collect`, `targets`, `update`, `finish_iteration`.
    """

    stage = "ppo"

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        config: PPOConfig,
        *,
        max_tokens: int,
        eval_reward: Reward | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.backbone, self.reward, self.config = backbone, reward, config
        self.processes, self.budget = (
            processes,
            TokenBudget(config.micro_batch_tokens, fixed=config.shard_base),
        )
        self.eval_reward = eval_reward
        roles = [
            backbone.add_role(POLICY, config.lora, seed=config.seed, scalar_head=not config.value_adapter)
        ]
        if config.value_adapter:
            roles.append(backbone.add_role(VALUE, config.lora, seed=config.seed, scalar_head=True))
        self.trunk_note = "trunk cache off: --no-trunk-cache"
        if config.trunk_cache:
            self.trunk_note = backbone.enable_trunk(max_tokens)
        if config.gradient_checkpointing:
            for role in roles:
                backbone.checkpoint_gradients(role.name)
        self.roles = roles
        heads = [p for role in roles if role.head is not None for p in role.head.parameters()]
        self.parameters = [p for role in roles for p in role.parameters()]
        adapter = [p for p in self.parameters if all(p is not head for head in heads)]
        self.optimizer = make_optimizer(adapter, heads, config.optim, config.value_lr)
        num_steps = config.num_iterations * config.num_epochs * config.num_minibatches
        self.schedule = make_schedule(self.optimizer, config.optim, num_steps)
        self.kl = KLController(config)
        self.scores = ScoreNormalizer(reward, config)
        self.watch = Watch(config)
        self.iteration = 0
        self.best: dict[str, Tensor] | None = None

    def begin_as(self, folder: Path) -> None:
        """Start from a saved policy, with its value head where it has one of the kind that is trained here.

        Raises CheckpointError where it does not fit: another backbone, rank, alpha, or share of layers.
        """
        role = self.backbone.roles[POLICY]
        settings = read_adapter_config(folder)
        base = settings.get("base_model_name_or_path")
        if base != self.backbone.name:
            raise CheckpointError(
                f"{folder}: was trained on the backbone {base!r}; expected {self.backbone.name!r}"
            )
        load_role_tensors(role, load_tensors(folder / WEIGHTS_FILE), str(folder))
        scaling = {"lora_alpha": 8, "use_rslora": False}  # with peft's defaults
        for name, default in scaling.items():
            found, expected = settings.get(name, default), getattr(role.lora, name)
            if found != expected:
                raise CheckpointError(
                    f"{folder}: was trained with {name} {found}; expected {expected}, since the same weights scaled in "
                    "another way are another policy (--lora.alpha)"
                )
        head = folder / VALUE_HEAD_FILE
        if role.head is not None and head.is_file():
            try:
                role.head.load_state_dict(load_tensors(head))
            except RuntimeError as error:
                raise CheckpointError(f"{head}: does not fit ({first_line(error)})") from error

    # ---- the steps of an iteration -----------------------------------------------------------------------

    @property
    def expected_iterations(self) -> int | None:
        """How many there will be at most, as far as that is known."""
        return self.config.num_iterations

    @property
    def cursor(self) -> int:
        """Prompts used so far: the place in the stream where the next rollout begins."""
        return self.iteration * self.config.num_prompts

    def collect(self, stream: PromptStream, check: Callable[[], None] = lambda: None) -> RolloutBatch:
        prompts = [stream[self.cursor + i] for i in range(self.config.num_prompts)]
        batch = collect(
            self.backbone,
            self.reward,
            prompts,
            self.config,
            first_cursor=self.cursor,
            seed=derived_seed(self.config.seed, "rollout"),
            samples_per_prompt=self.config.samples_per_prompt,
            budget=self.budget,
            processes=self.processes,
            check=check,
        )
        self.scores.observe(batch.scores_B)
        return batch

    def targets(self, batch: RolloutBatch) -> Targets:
        return make_targets(batch, self.scores.scale, self.config, self.kl.coef)

    def update(
        self, batch: RolloutBatch, targets: Targets, check: Callable[[], None] = lambda: None
    ) -> UpdateStats:
        return update(
            self.backbone,
            batch,
            targets,
            self.optimizer,
            self.parameters,
            self.config,
            iteration=self.iteration,
            budget=self.budget,
            processes=self.processes,
            on_step=self.schedule.step,
            check=check,
        )

    def finish_iteration(self, kl: float, num_completions: int) -> None:
        """Count the iteration and let the KL controller react. Raises GuardStop for a weight that is not finite."""
        where = f"iteration {self.iteration + 1}"
        require_finite_parameters(where, self.parameters)
        self.processes.require_same(where, self.parameters)
        # Where memory ran out in one process, the smaller micro-batches are the state of all.
        self.budget.tokens = min(self.processes.gather(self.budget.tokens))
        self.kl.update(kl, num_completions)
        self.iteration += 1

    def figures(
        self, batch: RolloutBatch, targets: Targets, stats: UpdateStats, seconds: dict[str, float]
    ) -> dict[str, float]:
        """What is logged for an iteration; see the module's text. Raises GuardStop when a figure is not finite."""
        mask_BT = batch.completions.mask_BT
        returns_N, values_N = targets.returns_BT[mask_BT], batch.values_BT[mask_BT]
        variance = returns_N.var(correction=0).item()
        unexplained = (returns_N - values_N).var(correction=0).item()
        k3_BT = k3(batch.old_logprobs_BT, batch.ref_logprobs_BT) * mask_BT
        scale = self.scores.scale
        figures = summarize(batch, scale, self.config, self.kl.coef) | stats.means()
        figures |= {
            "kl_k3": k3_BT.sum(1).mean().item(),
            "kl_coef": self.kl.coef,
            "score_mean": scale.mean,
            "score_std": scale.std,
            "explained_variance": 1 - unexplained / variance if variance > 0 else 0.0,
            "sampler_gap": batch.sampler_gap,
            "recomputed": float(batch.recomputed),
            "micro_batch_tokens": float(min(self.processes.gather(self.budget.tokens))),
            "lr": float(self.schedule.get_last_lr()[0]),
            "seconds_rollout": seconds["rollout"],
            "seconds_update": seconds["update"],
            "episodes_per_s": len(batch.texts) / sum(seconds.values()),
        }
        require_finite(f"iteration {self.iteration + 1}", **figures)
        return figures

    def evaluate(
        self, prompts: Sequence[EncodedPrompt], record: Run, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Figures on held-out prompts; writes the samples beside the metrics and remembers the best policy."""
        result = evaluate(
            self.backbone,
            self.reward,
            prompts,
            self.config,
            self.scores.fixed,
            eval_reward=self.eval_reward,
            budget=self.budget,
            processes=self.processes,
            check=check,
        )
        if self.processes.is_main:
            write_jsonl(record.path / "samples" / f"iteration-{self.iteration:06d}.jsonl", result.samples)
        is_best, alarm = self.watch.see(self.iteration, result)
        if self.watch.alarm:
            self.processes.say(f"{self.stage}: alarm at iteration {self.iteration}: {self.watch.alarm}")
        if is_best:
            self.best = role_weights(self.backbone.roles[POLICY])
        return result.figures | alarm

    def final_figures(self) -> dict[str, float]:
        """What the manifest says beside the last row of the metrics."""
        return {}

    def save(self, folder: Path) -> None:
        """folder/adapter, and folder/value where the value head has an adapter of its own."""
        save_policy(self.backbone.roles[POLICY], folder / "adapter", self.backbone)
        if VALUE in self.backbone.roles:
            save_policy(self.backbone.roles[VALUE], folder / "value", self.backbone)

    # ---- state -------------------------------------------------------------------------------------------

    @property
    def best_iteration(self) -> int:
        """Where the best evaluated policy is from; without evaluations the last one is the best that is known."""
        return self.iteration if self.best is None else self.watch.best_iteration

    def restore_best(self) -> None:
        """Put the best evaluated policy back."""
        if self.best is not None:
            load_role_weights(self.backbone.roles[POLICY], self.best, "best policy")

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes, as tensors and numbers."""
        return {
            "iteration": self.iteration,
            "roles": {role.name: role_weights(role) for role in self.roles},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": self.schedule.last_epoch,
            "kl": self.kl.state(),
            "scores": self.scores.state(),
            "watch": self.watch.state(),
            "best": self.best,
            "micro_batch_tokens": self.budget.tokens,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError when the state is of another set of roles or shapes."""
        if set(state["roles"]) != {role.name for role in self.roles}:
            raise CheckpointError(f"checkpoint holds the roles {sorted(state['roles'])}")
        for role in self.roles:
            load_role_weights(role, state["roles"][role.name], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        # Sums over another number of threads round differently: the same bits need the same number.
        torch.set_num_threads(state["threads"])
        self.budget.tokens = min(state["micro_batch_tokens"], self.config.micro_batch_tokens)
        self.schedule.last_epoch = state["schedule"]
        self.kl.load_state(state["kl"])
        self.scores.load_state(state["scores"])
        self.watch.load_state(state["watch"])
        self.iteration, self.best = state["iteration"], state["best"]


def _read_prompts(path: Path, backbone: Backbone, config: PPOConfig) -> list[EncodedPrompt]:
    room = config.sampling.max_completion_tokens
    drop = config.on_long_prompt == "drop"
    prompts, dropped = load_prompts(path, backbone.codec, room=room, drop_too_long=drop)
    if dropped:
        print(f"ppo: left out {dropped} prompts of {path} that are too long")
    return prompts
