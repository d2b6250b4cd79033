"""One measurement of the peer, TRL's PPOTrainer, in a process of its own: python -m bench.theirs CASE MODEL RESULT.

The trainer is used as its documentation has it: a LoRA policy whose disabled adapter is the reference, and a
value model with weights of its own. The reward model is a module that counts tokens, so it costs nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from bench.cases import END, PAD, Case, Result, load_case, save
from bench.imposed import ImposedLengths, TokenShare
from bench.measure import PeakMemory, Phases, now


class Clock(TrainerCallback):
    """Notes when iterations end, when an iteration's update begins, and how the policy does on held-out prompts."""

    def __init__(self, case: Case, phases: Phases, trainer: PPOTrainer) -> None:
        self.case, self.phases, self.trainer = case, phases, trainer
        self.seconds: list[float] = []
        self.curve: list[tuple[int, float, float, float]] = []
        self.started = self.updating = 0.0

    def begin(self) -> None:
        self.updating = 0.0
        self.started = now()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._measure(0)
        self.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ended = now()
        self.seconds.append(ended - self.started)
        done = len(self.seconds)
        if self.phases.on:
            self.phases.end_iteration(self.updating - self.started, ended - self.updating)
        if done == self.case.warmup + self.case.timed:
            self.phases.start()
        self._measure(done)
        self.begin()

    def _measure(self, done: int) -> None:
        if self.case.eval_every and done % self.case.eval_every == 0:
            mean, half = held_out(self.trainer.policy_model, self.case)
            self.curve.append((done, sum(self.seconds), mean, half))

    def watched_forward(self, model: Any, *args: Any, **options: Any) -> Any:
        if self.phases.on and torch.is_grad_enabled() and not self.updating:
            self.updating = now()
        return self._forward(model, *args, **options)

    def install(self) -> None:
        self._forward = ppo_trainer.forward
        ppo_trainer.forward = self.watched_forward
        ppo_trainer.batch_generation = self.phases.watch("generation", ppo_trainer.batch_generation)
        torch.Tensor.backward = self.phases.watch("backward", torch.Tensor.backward)


@torch.no_grad()
def held_out(model: Any, case: Case) -> tuple[float, float]:
    """(mean share of wanted tokens on held-out prompts, half width of its 95 % interval)."""
    base = model.get_base_model()
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        prompts = torch.tensor(case.prompts("held-out"), device=case.device)
        # The class's own method: the one on the object imposes the rollout's lengths.
        rows = type(base).generate(
            base,
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=case.completion,
            do_sample=True,
            top_k=0,
            suppress_tokens=[PAD, END],
        )
    shares = (rows[:, case.prompt :] >= case.wanted.start).double().mean(1)
    return shares.mean().item(), 1.96 * (shares.std() / len(shares) ** 0.5).item()


def make_trainer(case: Case, model_dir: Path, output_dir: str) -> PPOTrainer:
    dtype = getattr(torch, case.dtype)
    policy = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    value = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=dtype, num_labels=1)
    adapters = {"r": case.rank, "lora_alpha": 2 * case.rank, "target_modules": case.targets}
    if case.value == "lora":
        value = get_peft_model(value, LoraConfig(task_type="SEQ_CLS", **adapters))
    arguments = PPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=case.micro_rows,
        gradient_accumulation_steps=case.batch // case.micro_rows,
        local_rollout_forward_batch_size=case.batch,
        num_mini_batches=case.minibatches,
        num_ppo_epochs=case.epochs,
        total_episodes=case.batch * case.iterations,
        response_length=case.completion,
        stop_token="eos" if case.mixed else None,
        temperature=1.0,
        learning_rate=case.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        kl_coef=case.kl_coef,
        vf_coef=case.value_coef,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=case.dtype == "bfloat16",
        use_cpu=case.device == "cpu",
        seed=case.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"input_ids": case.prompts()})
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    policy.generate = ImposedLengths(case).generating(policy.generate)
    return PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=TokenShare(case),
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **adapters),
    )


def measure(case: Case, model_dir: Path) -> Result:
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    memory, phases = PeakMemory(case.device), Phases()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, model_dir, folder)
        phases.watch_optimizer(trainer.optimizer.optimizer)
        clock = Clock(case, phases, trainer)
        clock.install()
        lengths_seen: list[float] = []
        spy_on_lengths(lengths_seen)
        trainer.add_callback(clock)
        trainer.train()
    timed = range(case.warmup, case.warmup + case.timed)
    return Result(
        seconds=[clock.seconds[i] for i in timed],
        tokens=[case.num_tokens(i) for i in timed],
        memory_mb=memory.peak_mb(),
        phases=phases.means(),
        steps=phases.steps,
        adapter_parameters=sum(p.numel() for p in trainer.policy_model.parameters() if p.requires_grad),
        trained_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        curve=clock.curve,
        lengths_seen=lengths_seen,
    )


def spy_on_lengths(seen: list[float]) -> None:
    """Note the mean length that the trainer itself found in each rollout (its rows before the first pad)."""
    generation = ppo_trainer.batch_generation

    def noted(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        rows, logits = generation(model, queries, *args)
        seen.append((rows[:, queries.shape[1] :] != PAD).sum(1).float().mean().item())
        return rows, logits

    ppo_trainer.batch_generation = noted


if __name__ == "__main__":
    case_path, model_path, result_path = map(Path, sys.argv[1:])
    save(measure(load_case(case_path), model_path), result_path)
