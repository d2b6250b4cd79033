"""The student of a distillation: made from the teacher's layers or loaded, and trained whole."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.after.config import DistillConfig
from rlhf.after.divergence import student_losses
from rlhf.after.heldout import HeldOut
from rlhf.core.backbone import REFERENCE, Backbone, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.decoder import layer_list_name
from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.guards import TokenBudget, require_finite, require_finite_parameters
from rlhf.core.optim import clip_gradients, make_optimizer, make_schedule
from rlhf.core.randomness import derived_seed
from rlhf.core.settings import ModelSettings
from sft.data import Example


def chosen_layers(num_teacher: int, num_student: int) -> list[int]:
    """Which of the teacher's layers the student gets: evenly spread, the first and the last among them."""
    if num_student >= num_teacher:
        raise ConfigError(
            f"--student-layers is {num_student}; expected fewer than the teacher's {num_teacher} layers"
        )
    if num_student == 1:
        return [num_teacher - 1]
    return [round(i * (num_teacher - 1) / (num_student - 1)) for i in range(num_student)]


def copied_student(teacher: Backbone, num_layers: int) -> Backbone:
    """A model of some of the teacher's layers, with its embeddings, norm and output matrix, in fp32.

    (Sanh et al., arXiv:1910.01108, begin DistilBERT the same way.)"""
    kept = chosen_layers(teacher.num_layers, num_layers)
    config = copy.deepcopy(teacher.model.config)
    text = config.get_text_config()
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = [teacher.model.config.get_text_config().layer_types[i] for i in kept]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    inside = f"{layer_list_name(teacher.decoder)}."
    pattern = re.compile(rf"(^|.*\.){re.escape(inside)}(\d+)\.(.*)")
    state = {}
    for name, tensor in teacher.model.state_dict().items():
        found = pattern.fullmatch(name)
        if found is None:
            state[name] = tensor
        elif int(found[2]) in kept:
            for place in [i for i, layer in enumerate(kept) if layer == int(found[2])]:
                state[f"{found[1]}{inside}{place}.{found[3]}"] = tensor
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{teacher.name}: its layers cannot be taken out one by one ({str(error).splitlines()[0]})"
        ) from error
    model.generation_config = copy.deepcopy(teacher.model.generation_config)
    model.eval().to(teacher.device)
    return Backbone(model, teacher.codec, teacher.name)


def loaded_student(path: str, teacher: Backbone, settings: ModelSettings) -> Backbone:
    """A given student, in fp32. Raises ModelError where its tokens are not the teacher's."""
    student = Backbone.load(path, settings.model_copy(update={"dtype": "float32", "quantization": "none"}))
    if student.codec.tokenizer.get_vocab() != teacher.codec.tokenizer.get_vocab():
        raise ModelError(
            f"{path}: has another vocabulary than {teacher.name}; expected a student with the teacher's tokenizer"
        )
    if student.codec.end_token_ids[0] != teacher.codec.end_token_ids[0]:
        raise ModelError(
            f"{path}: ends answers with token {student.codec.end_token_ids[0]}, the teacher with "
            f"{teacher.codec.end_token_ids[0]}; expected the same"
        )
    return student


class StudentTrainer:
    """The state of one student's training and what changes it: steps over examples, validation after every epoch.

    weight: of the divergence from the teacher in the loss; 0 trains on the demonstrations' tokens alone. An epoch's
    order and a step's dropout follow from (seed, number), so a state between two steps is enough to go on exactly.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        train_set: Sequence[Example],
        validation: HeldOut,
        config: DistillConfig,
        weight: float,
    ) -> None:
        self.student, self.teacher, self.train_set = student, teacher, train_set
        self.validation, self.config, self.weight = validation, config, weight
        self.model: Any = student.model
        self.parameters = [p.requires_grad_(True) for p in self.model.parameters()]
        self.steps_per_epoch = math.ceil(len(train_set) / config.batch_size)
        self.optimizer = make_optimizer(self.parameters, [], config.optim, None)
        self.schedule = make_schedule(self.optimizer, config.optim, self.steps_per_epoch * config.num_epochs)
        self.budget = TokenBudget(config.micro_batch_tokens, shorter="rows in --data")
        self.step = self.stale = self.best_epoch = 0
        self.before = self.best_loss = self._validate()
        self.best = self._weights()
        self.curve: list[tuple[int, float]] = [(0, self.before)]
        self._vocab_size = min(student.vocab_size, teacher.vocab_size)

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def done(self) -> bool:
        """All epochs are done and validated, or patience has run out."""
        validated = len(self.curve) - 1 == self.epoch and self.step % self.steps_per_epoch == 0
        return validated and (self.epoch >= self.config.num_epochs or self.stale >= self.config.patience)

    def train_step(self, check: Callable[[], None]) -> dict[str, float]:
        """The next optimizer step. Returns what is logged. Raises GuardStop; after Stopped the state is that before."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.train_set), generator=generator).tolist()
        first = self.step % self.steps_per_epoch * self.config.batch_size
        batch = [self.train_set[i] for i in order[first : first + self.config.batch_size]]
        self.model.train()
        try:
            sums = self.budget.fit(
                lambda tokens: self._accumulate(batch, tokens, check), [len(e.input_ids) for e in batch]
            )
        finally:
            self.model.eval()
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        where = f"step {self.step + 1}"
        require_finite(where, loss=sums["loss"], grad_norm=norm)
        self.optimizer.step()
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return sums | {"grad_norm": norm, "lr": rate}

    def finish_epoch(self) -> float:
        """Validate and remember the best epoch. Returns the validation loss."""
        require_finite_parameters(f"epoch {self.epoch}", self.parameters)
        loss = self._validate()
        require_finite(f"epoch {self.epoch}", validation_loss=loss)
        self.curve.append((self.epoch, loss))
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self.stale = loss, self.epoch, 0
            self.best = self._weights()
        else:
            self.stale += 1
        return loss

    def restore_best(self) -> None:
        """Put the best epoch's weights in, frozen."""
        self.model.load_state_dict(self.best)
        self.model.requires_grad_(False)
        self.model.eval()

    def _accumulate(
        self, batch: Sequence[Example], max_tokens: int, check: Callable[[], None]
    ) -> dict[str, float]:
        torch.manual_seed(derived_seed(self.config.seed, "dropout", self.step))
        self.optimizer.zero_grad(set_to_none=True)
        count = sum(example.num_targets for example in batch)
        divergence = nll = 0.0
        for places in token_budget_batches([len(e.input_ids) for e in batch], max_tokens):
            check()
            first, second = self._losses([batch[place] for place in places])
            loss = self.weight * first + (1 - self.weight) * second
            (loss / count).backward()
            divergence, nll = divergence + first.item(), nll + second.item()
        total = self.weight * divergence + (1 - self.weight) * nll
        return {"loss": total / count, "divergence": divergence / count, "nll": nll / count}

    def _losses(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Summed divergence and negative log-likelihood of some rows' target tokens."""
        device = self.student.device
        tokens_BS = right_padded([e.input_ids for e in rows], self.student.codec.pad_token_id, device)
        mask_BS = right_padded([e.completion_mask for e in rows], 0, device).bool()[:, 1:]
        student_NH = self.student.hidden(REFERENCE, tokens_BS)[:, :-1][mask_BS]
        teacher_NG = None
        if self.weight:
            with torch.no_grad():
                teacher_NG = self.teacher.hidden(REFERENCE, tokens_BS)[:, :-1][mask_BS]
        return student_losses(
            self.student.head,
            self.teacher.head,
            student_NH,
            teacher_NG,
            tokens_BS[:, 1:][mask_BS],
            vocab_size=self._vocab_size,
            beta=self.config.beta,
            temperature=self.config.temperature,
        )

    def _validate(self) -> float:
        return float(self.validation.nats(self.student, REFERENCE).sum() / self.validation.counts.sum())

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    # ---- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self._weights(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "stale": self.stale,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best": self.best,
            "curve": self.curve,
            "pass_tokens": self.budget.tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.stale, self.best_epoch = state["step"], state["stale"], state["best_epoch"]
        self.best_loss, self.best = state["best_loss"], state["best"]
        self.curve = [(int(epoch), float(loss)) for epoch, loss in state["curve"]]
        self.before = self.curve[0][1]
        self.budget.tokens = state["pass_tokens"]


def size_of(model: Any) -> tuple[int, int]:
    """(parameters, bytes), a tied matrix once."""
    numbers = list({id(p): p for p in model.parameters()}.values())
    return sum(p.numel() for p in numbers), sum(p.numel() * p.element_size() for p in numbers)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
