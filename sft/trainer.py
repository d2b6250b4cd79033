"""trl's SFTTrainer with everything decided by our settings, and with a way on when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf.core.adapters import load_tensors
from rlhf.core.backbone import Backbone, Role
from rlhf.core.batching import token_budget_batches
from rlhf.core.guards import TokenBudget
from sft.config import SFTConfig
from sft.data import Example
from sft.methods import load_trained, trained_tensors
from sft.mixture import MixtureSampler
from sft.noise import EmbeddingNoise
from sft.packing import PackedCollator, to_dataset, to_rows
from sft.remedies import REPLAY, KlToBase, with_replay

_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
TRAINED_FILE = "trained.safetensors"


def room_of(config: SFTConfig, backbone: Backbone) -> int | None:
    """Tokens of a block; None without packing."""
    return config.room(backbone.codec.max_tokens) if config.packing else None


def pass_budget(
    config: SFTConfig, examples: Sequence[Example], rows: Sequence[Sequence[Example]] = ()
) -> TokenBudget:
    """Padded tokens per pass: room for a micro-batch of the longest examples, so it cuts nothing until halved.

    rows: the blocks, with packing.
    """
    longest = max(sum(len(example.input_ids) for example in row) for row in (*([e] for e in examples), *rows))
    return TokenBudget(
        config.micro_batch_size * longest, name="the budget of padded tokens per pass", shorter="max_tokens"
    )


class Trainer(SFTTrainer):
    """SFTTrainer that writes no model card, which would ask the hub about the base model, and that halves its
    passes when memory runs out.

    A micro-batch that does not fit is cut into parts and begun again from the gradients before it. The loss is
    divided by the target tokens of the whole batch in each part, so the step stays that of the same batch;
    accelerate's `find_executable_batch_size` would train on a smaller one.

    sampler: the order of rows where it is not the usual shuffle. noise: NEFTune's. kl: KL to the base as a second term.
    """

    budget: TokenBudget
    role: Role
    sampler: MixtureSampler | None = None
    noise: EmbeddingNoise | None = None
    kl: KlToBase | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest says where the model comes from."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler if self.sampler is not None else super()._get_train_sampler(train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.noise is not None:
            self.noise.prepare(inputs)
        if self.kl is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.kl.watching():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        term, mean = self.kl.term(inputs, kwargs["num_items_in_batch"])
        if mean is not None:
            self._metrics["train"]["kl_to_base"].append(mean)
        return loss + term

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Loss and gradients of a micro-batch, in as many parts as memory asks for."""
        # trl's closure over the instance: `super()` does not work inside of the nested function.
        step = super().training_step
        trained = [p for p in model.parameters() if p.requires_grad]
        before = [p.grad for p in trained]
        lengths = _lengths(inputs)
        if num_items_in_batch is None:  # the mean over the micro-batch, also in parts of it
            num_items_in_batch = (inputs["labels"][:, 1:] != -100).sum()
        logged = {name: len(values) for name, values in self._metrics["train"].items()}

        def work(tokens: int) -> Tensor:
            for parameter in trained:
                parameter.grad = None
            for name, values in self._metrics["train"].items():
                del values[logged.get(name, 0) :]
            groups = token_budget_batches(lengths, tokens)
            parts = [inputs] if len(groups) == 1 else [_rows(inputs, group, lengths) for group in groups]
            losses = [step(model, dict(part), num_items_in_batch) for part in parts]
            return torch.stack(losses).sum()

        loss = self.budget.fit(work, lengths)
        for parameter, gradient in zip(trained, before, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return loss

    # ---- checkpoints of adapters that peft does not know: their own tensors, not the whole frozen base with them ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.role.bottleneck is None:
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        save_file(trained_tensors(self.role), Path(folder) / TRAINED_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.role.bottleneck is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        path = Path(resume_from_checkpoint) / TRAINED_FILE
        load_trained(self.role, load_tensors(path), str(path))


def _lengths(inputs: dict[str, Any]) -> list[int]:
    """Tokens of each row of a batch without its padding; of blocks, which are all about as long, their width."""
    if "attention_mask" in inputs:
        found: list[int] = inputs["attention_mask"].sum(1).tolist()
        return found
    rows, width = inputs["input_ids"].shape
    return [width] * rows


def _rows(inputs: dict[str, Any], rows: Sequence[int], lengths: Sequence[int]) -> dict[str, Any]:
    """These rows of a batch that is padded on the right, without the padding that none of them needs."""
    longest = max(lengths[row] for row in rows)
    return {name: value[list(rows), :longest] for name, value in inputs.items()}


def make_trainer(
    backbone: Backbone,
    role: Role,
    examples: Sequence[Example],
    config: SFTConfig,
    folder: Path,
    budget: TokenBudget | None = None,
) -> Trainer:
    """trl's trainer on what the role trains. It writes checkpoints into `folder` when a callback asks for one."""
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    rows = to_rows(examples, room_of(config, backbone))
    pad = backbone.codec.pad_token_id
    exact = [(parameter, parameter.data) for parameter in role.parameters()]
    trainer = Trainer(
        model=role.model,
        args=trl_settings(config, backbone, folder),
        train_dataset=to_dataset(rows),
        processing_class=backbone.codec.tokenizer,
        data_collator=PackedCollator(pad) if config.packing else DataCollatorForLanguageModeling(pad),
    )
    for parameter, data in exact:  # beside a base in 4 bits trl rounds adapters to bfloat16
        parameter.data = data
    if isinstance(role.model, PeftModel):
        # On its own peft would ask the hub at every save whether the base has other embeddings by now.
        role.model.save_pretrained = partial(role.model.save_pretrained, save_embedding_layers=False)
    trainer.role = role
    trainer.budget = budget or pass_budget(config, examples, rows)
    trainer.sampler = make_sampler(rows, config)
    if config.kl_to_base:
        trainer.kl = KlToBase(backbone, role, config, rows)
    if config.neftune_alpha:
        trainer.noise = EmbeddingNoise(role.causal_lm.get_input_embeddings(), config.neftune_alpha)
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_sampler(rows: Sequence[Sequence[Example]], config: SFTConfig) -> MixtureSampler | None:
    """The order of rows of tasks with weights, or with replayed rows; None for the usual shuffle of all rows."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row[0].task, []).append(place)
    replayed = places.pop(REPLAY, None)
    of_tasks = list(places.values())
    if replayed is not None:
        number, weights = with_replay([len(own) for own in of_tasks], config.weights, config.replay_share)
        return MixtureSampler([*of_tasks, replayed], weights, config.seed, num_rows=number)
    return MixtureSampler(of_tasks, config.weights, config.seed) if config.weights else None


def trl_settings(config: SFTConfig, backbone: Backbone, folder: Path) -> TrlConfig:
    """Our settings in trl's words."""
    optim = config.optim
    return TrlConfig(
        output_dir=str(folder),
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        activation_checkpointing=config.gradient_checkpointing,
        learning_rate=optim.lr,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type=_SCHEDULES[optim.schedule],
        max_grad_norm=optim.max_grad_norm,
        max_length=None,  # nothing is cut: too long rows were refused or left out, and counted
        completion_only_loss=True,
        bf16=config.model.dtype == "bfloat16" and backbone.device.type == "cuda",
        fp16=False,
        use_cpu=backbone.device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,  # every step is looked at for NaN
        logging_nan_inf_filter=False,
        save_strategy="no",  # Watch asks for each save and commits it
        eval_strategy="no",  # Watch validates
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=backbone.device.type == "cuda",
    )
