"""One measurement of trl's RewardTrainer, in a process of its own: python -m bench.reward_theirs CASE MODEL RESULT.

As its documentation has it: a sequence-classification model with a peft adapter and a trained score head, the
validation pairs evaluated after every epoch. It is given token ids, so both sides read the very same rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from bench.cases import Case, Result, load_case, save
from bench.measure import PeakMemory, Phases, now
from bench.pairs import Pair, accuracy, pairs_of


def dataset(pairs: list[Pair]) -> Dataset:
    return Dataset.from_dict({"chosen_ids": [c for c, _ in pairs], "rejected_ids": [r for _, r in pairs]})


def make_trainer(case: Case, model_dir: Path, output_dir: str) -> RewardTrainer:
    model = AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=getattr(torch, case.dtype), num_labels=1
    )
    arguments = RewardConfig(
        output_dir=output_dir,
        per_device_train_batch_size=case.batch,
        per_device_eval_batch_size=case.batch,
        num_train_epochs=case.epochs,
        learning_rate=case.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        center_rewards_coefficient=0.01,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=case.device == "cpu",
        seed=case.seed,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset(pairs_of(case, "train")),
        eval_dataset=dataset(pairs_of(case, "held-out")),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=case.rank,
            lora_alpha=2 * case.rank,
            lora_dropout=0.0,
            target_modules=case.targets,
            modules_to_save=["score"],
        ),
    )


@torch.no_grad()
def scores(trainer: RewardTrainer, rows: list[list[int]], case: Case) -> list[float]:
    model = trainer.model.eval()
    found: list[float] = []
    for start in range(0, len(rows), case.batch):
        batch = [{"chosen_ids": row, "rejected_ids": row} for row in rows[start : start + case.batch]]
        inputs = trainer.data_collator(batch)
        half = len(batch)
        inputs = {name: inputs[name][:half].to(model.device) for name in ("input_ids", "attention_mask")}
        found += model(**inputs).logits.squeeze(-1).tolist()
    return found


def measure(case: Case, model_dir: Path) -> Result:
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    memory, phases = PeakMemory(case.device), Phases()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, model_dir, folder)
        trainer.create_optimizer()
        phases.watch_optimizer(trainer.optimizer)
        started = now()
        trainer.train()
        seconds = now() - started
        peak = memory.peak_mb()
        held_out = pairs_of(case, "held-out")
        mean, half = accuracy(*(scores(trainer, [p[side] for p in held_out], case) for side in (0, 1)))
    trained = {name: p.numel() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return Result(
        seconds=[seconds],
        tokens=[case.epochs * sum(len(row) for pair in pairs_of(case, "train") for row in pair)],
        memory_mb=peak,
        phases={},
        steps=phases.steps,
        adapter_parameters=sum(size for name, size in trained.items() if "lora_" in name),
        trained_parameters=sum(trained.values()),
        curve=[(case.epochs, seconds, mean, half)],
    )


if __name__ == "__main__":
    case_path, model_path, result_path = map(Path, sys.argv[1:])
    save(measure(load_case(case_path), model_path), result_path)
