"""What looks over the trainer's shoulder: validation, the best adapter, early stopping, guards, checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlhf.core.backbone import Role
from rlhf.core.checkpoint import commit_checkpoint, load_state, save_state
from rlhf.core.guards import SignalGuard, TokenBudget, require_finite, require_finite_parameters
from rlhf.core.metrics import MetricsLog
from sft.config import TASK_LOSS
from sft.methods import trained_tensors


class Validation(NamedTuple):
    """loss: what the best step is chosen by, nats per token. parts: of each task, where there are several."""

    loss: float
    parts: dict[str, float]


class Watch(TrainerCallback):
    """Validates every `eval_steps` and at the end, keeps the best adapter in memory and in every checkpoint.

    first: the first validation, of what training begins with. best_loss, best_step, best, best_parts: of the best
    one so far; the beginning itself is the first, so a run that only makes things worse ends where it began.
    """

    def __init__(
        self,
        role: Role,
        *,
        validate: Callable[[], Validation],
        metrics: MetricsLog,
        checkpoints: Path,
        num_steps: int,
        eval_steps: int,
        patience: int,
        guard: SignalGuard,
        advance: Callable[..., None],
        budget: TokenBudget,
    ) -> None:
        self.role = role
        self.metrics = metrics
        self.checkpoints = checkpoints
        self.num_steps, self.eval_steps, self.patience = num_steps, eval_steps, patience
        self.guard, self.advance, self.budget = guard, advance, budget
        self.step = self.best_step = self.stale = 0
        self.first, self.best_loss = Validation(math.inf, {}), math.inf
        self.best: dict[str, Tensor] = {}
        self.best_parts: dict[str, float] = {}
        self._validate = validate
        self._last_validated = -1

    @property
    def done(self) -> bool:
        """Nothing is left to train: all steps are taken, or patience has run out."""
        return self._last_validated == self.step and (
            self.step >= self.num_steps or self.stale >= self.patience
        )

    # ---- events of the trainer ---------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.best:  # a fresh run; a resumed one has loaded its state
            self._look(0)
            self.first = Validation(self.best_loss, self.best_parts)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.step = state.global_step
        if self.step % self.eval_steps == 0 or self.step == self.num_steps:
            self._look(self.step)
            control.should_save = True
            control.should_training_stop |= self.stale >= self.patience
        if self.guard.received is not None:
            control.should_save = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:  # the trainer's summary at the end
            return
        where = f"step {state.global_step}"
        require_finite(where, loss=float(logs["loss"]), grad_norm=float(logs.get("grad_norm", 0.0)))
        row = {
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm", 0.0),
            "lr": logs.get("learning_rate", 0.0),
        }
        if "mean_token_accuracy" in logs:
            row["token_accuracy"] = logs["mean_token_accuracy"]
        if "kl_to_base" in logs:
            row["kl_to_base"] = logs["kl_to_base"]
        self.metrics.log(state.global_step, **row)
        self.advance(loss=float(logs["loss"]))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """What the trainer has just written becomes a checkpoint that is whole or not there. Raises GuardStop."""
        # A stop may ask for a save at a step that was not validated.
        require_finite_parameters(f"step {state.global_step}", self.role.parameters())
        written = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

        def write(folder: Path) -> None:
            for entry in written.iterdir():
                shutil.move(entry, folder / entry.name)
            save_state(folder, self._state())

        commit_checkpoint(self.checkpoints, state.global_step, write)
        shutil.rmtree(args.output_dir)
        # Not earlier: the trainer writes down what is asked of it, and a checkpoint must not tell how it came about.
        control.should_training_stop |= self.guard.received is not None
        return control

    # ---- validation --------------------------------------------------------------------------------------

    def _look(self, step: int) -> None:
        loss, parts = self._validate()
        require_finite(f"step {step}", validation_loss=loss)
        require_finite_parameters(f"step {step}", self.role.parameters())
        self.metrics.log(
            step, validation_loss=loss, **{f"{TASK_LOSS}{name}": value for name, value in parts.items()}
        )
        self._last_validated = step
        if loss < self.best_loss:
            self.best_loss, self.best_parts, self.best_step, self.stale = loss, parts, step, 0
            self.best = trained_tensors(self.role)
        else:
            self.stale += 1

    # ---- state -------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "first": tuple(self.first),
            "best_loss": self.best_loss,
            "best_parts": self.best_parts,
            "best_step": self.best_step,
            "stale": self.stale,
            "best": self.best,
            "last_validated": self._last_validated,
            "pass_tokens": self.budget.tokens,
        }

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint that `on_save` committed."""
        state = load_state(folder)
        self.step, self.first = state["step"], Validation(*state["first"])
        self.best_loss, self.best_parts = state["best_loss"], state["best_parts"]
        self.best_step, self.stale = state["best_step"], state["stale"]
        self.best, self._last_validated = state["best"], state["last_validated"]
        self.budget.tokens = state["pass_tokens"]
