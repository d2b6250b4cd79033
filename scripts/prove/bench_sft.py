"""Training tokens a second of `rlhf sft` beside bare trl SFTTrainer, on the same data and settings.

    python scripts/prove/bench_sft.py [--pairs 5] [--rows 96] [--epochs 2] [--shape llama-5m] [--threads 2]

Both sides run in turn in one process, on the same random weights and token ids, with the same rank, targets, dropout,
learning rate, micro-batches and precision; both log every step, validate on the same rows before the first step and
after each epoch, and save after each epoch. Ours does so with its guards and callbacks: every loss, gradient norm and
weight looked at for NaN, signals, passes that can be halved, the best adapter kept, checkpoints that are flushed,
hashed and committed. What is timed is `SFTTrainer.train`, validations and saves included; loading the model, reading
the rows and building the trainer are off the clock on both sides.

Ends with 1 when the median ratio of the pairs is below 0.97. Run it on an idle machine: about a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench.model import write_model
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf.core.backbone import Backbone
from rlhf.core.run import Launch, Run
from sft.config import SFTConfig
from sft.data import Example
from sft.methods import add_method
from sft.packing import to_dataset, to_rows
from sft.tasks import Task
from sft.train import ROLE, train
from sft.trainer import pass_budget

FLOOR = 0.97
BATCH, MICRO_BATCH, RANK, VALIDATION_ROWS = 16, 8, 16, 16


def make_examples(count: int, vocabulary: int, seed: int) -> list[Example]:
    """Prompts of 16 to 48 and completions of 16 to 96 random tokens."""
    rng = random.Random(seed)
    rows = []
    for line in range(count):
        prompt, completion = rng.randint(16, 48), rng.randint(16, 96)
        ids = [rng.randrange(8, vocabulary) for _ in range(prompt + completion)]
        rows.append(Example(line, str(line), ids, [0] * prompt + [1] * completion))
    return rows


def make_config(base: Path, epochs: int) -> SFTConfig:
    return SFTConfig.model_validate(
        {
            "base": str(base),
            "num_epochs": epochs,
            "batch_size": BATCH,
            "micro_batch_size": MICRO_BATCH,
            "patience": 100,
            "lora": {"r": RANK, "alpha": 2 * RANK, "dropout": 0.0, "adapter_layers": 1.0},
            "optim": {"lr": 2e-4, "schedule": "cosine", "warmup_steps": 10},
            "model": {"device": "cpu"},
        }
    )


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Seconds of every `SFTTrainer.train` within the block."""
    seconds: list[float] = []
    own = SFTTrainer.train

    def timed(self: Any, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = own(self, *args, **options)
        seconds.append(time.perf_counter() - started)
        return result

    SFTTrainer.train = timed
    try:
        yield seconds
    finally:
        SFTTrainer.train = own


def ours(config: SFTConfig, train_set: list[Example], held_out: list[Example], out: Path) -> None:
    assert config.base
    backbone = Backbone.load(config.base, config.model)
    role = add_method(backbone, ROLE, config, train_set[0].input_ids)
    task = Task("data", train_set, held_out)
    launch = Launch(workspace=out.parent, db="sqlite://", out=out)
    with Run.start(out, stage="sft", settings=config, launch=launch, parents={}, seed=0) as record:
        train(backbone, role, [task], config, record, pass_budget(config, [*train_set, *held_out]))


def theirs(config: SFTConfig, train_set: list[Example], held_out: list[Example], out: Path) -> None:
    """As trl's documentation has it, given the same token ids and labels."""
    assert config.base
    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    arguments = TrlConfig(
        output_dir=str(out),
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=MICRO_BATCH,
        per_device_eval_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        activation_checkpointing=False,
        learning_rate=config.optim.lr,
        adam_beta2=config.optim.beta2,
        lr_scheduler_type="cosine",
        warmup_steps=config.optim.warmup_steps,
        max_length=None,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        eval_strategy="epoch",
        eval_on_start=True,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(config.base)
    SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=to_dataset(to_rows(train_set, None)),
        eval_dataset=to_dataset(to_rows(held_out, None)),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    ).train()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--shape", default="llama-5m")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = make_config(write_model(options.shape, root / "model"), options.epochs)
        vocabulary = Backbone.load(root / "model", config.model).vocab_size
        train_set = make_examples(options.rows, vocabulary, 0)
        held_out = make_examples(VALIDATION_ROWS, vocabulary, 1)
        tokens = options.epochs * sum(len(example.input_ids) for example in train_set)
        for number in range(-1, options.pairs):  # the first pair warms up and is not counted
            rates = {}
            sides = [("ours", ours), ("theirs", theirs)]
            for name, side in sides if number % 2 else sides[::-1]:
                quiet = io.StringIO()
                with (
                    stopwatch() as seconds,
                    contextlib.redirect_stdout(quiet),
                    contextlib.redirect_stderr(quiet),
                ):
                    side(config, train_set, held_out, root / f"{name}-{number}")
                rates[name] = tokens / seconds[0]
            if number < 0:
                continue
            ratios.append(rates["ours"] / rates["theirs"])
            print(
                f"pair {number + 1}: ours {rates['ours']:,.0f} tokens/s, bare trl {rates['theirs']:,.0f}, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    median = statistics.median(ratios)
    print(
        f"median ratio of {len(ratios)} pairs {median:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}; floor {FLOOR}"
    )
    return 0 if median >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
