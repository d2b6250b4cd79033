"""What an offline run leaves: the adapter, the picture, the manifest with the last figures."""

from __future__ import annotations

from typing import Any

from rlhf.core.adapters import save_policy
from rlhf.core.files import atomic_folder, clear_folders
from rlhf.core.run import Run
from rlhf.preference.picture import draw_offline
from rlhf.preference.trainer import OfflineTrainer


def finish(trainer: OfflineTrainer, test: dict[str, float], record: Run) -> None:
    """Write what the run was for: the adapter, the picture, the manifest with the last figures."""
    clear_folders(record.path, "adapter")
    with atomic_folder(record.path / "adapter") as folder:
        save_policy(trainer.role, folder, trainer.backbone)
    draw_offline(record.path, trainer.config.method)
    metrics: dict[str, Any] = {
        "best_epoch": trainer.best_epoch,
        "num_epochs": trainer.epoch,
        "validation_loss": trainer.best_loss,
        **{f"test_{name}": value for name, value in test.items()},
        "seconds_training": trainer.spent.seconds,
        "tokens_spent": float(trainer.spent.tokens),
        "num_examples": len(trainer.examples),
        "num_ties": trainer.data.num_ties,
        "num_too_long": trainer.data.num_too_long,
        "num_demonstrations": trainer.data.num_demonstrations,
    }
    raters = trainer.data.raters
    record.finish(metrics, extra={"method": trainer.config.method, "raters": raters.rows() if raters else []})
    accuracy = f", test accuracy {test['accuracy']:.3f}" if "accuracy" in test else ""
    print(
        f"prefer: {trainer.config.method}: validation loss {trainer.best_loss:.4f} at epoch "
        f"{trainer.best_epoch}{accuracy}; saved in {record.path / 'adapter'}"
    )
