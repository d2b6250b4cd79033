"""Loading whatever a person calls a model: a directory, a run, an adapter, a hub id.

Two things that sit on the same backbone share it: the base is loaded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.foreign import ForeignScorer, find_classifier, open_classifier
from reward.score import RewardScorer
from rlhf.core.adapters import base_path, load_adapter
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import DataError
from rlhf.core.inputs import find_adapter, find_model, model_name
from rlhf.core.run import Launch, content_sha256
from rlhf.core.settings import ModelSettings


@dataclass(frozen=True)
class Generator:
    """Something that writes completions: a role of a backbone. model_id names it in the store and in reports."""

    backbone: Backbone
    role: str
    model_id: str
    path: Path | None


class ModelPool:
    """Backbones by name, each loaded once."""

    def __init__(self, settings: ModelSettings, launch: Launch) -> None:
        self._settings, self._launch = settings, launch
        self._backbones: dict[str, Backbone] = {}
        self._numbers = itertools.count(1)

    def backbone(self, path: str) -> Backbone:
        name = model_name(path, self._launch)
        if name not in self._backbones:
            self._backbones[name] = Backbone.load(path, self._settings, name=name)
        return self._backbones[name]

    def generator(self, text: str) -> Generator:
        """The model that `text` names. Raises DataError, ModelError or CheckpointError."""
        path = find_model(text, self._launch)
        # A supervised run holds both its adapter and the merged model; the model is what it is for.
        adapter = None if (Path(path) / "config.json").is_file() else self._adapter_folder(text)
        if adapter is None:
            backbone = self.backbone(path)
            return Generator(
                backbone,
                REFERENCE,
                _identity(path, self._launch),
                Path(path) if Path(path).exists() else None,
            )
        backbone = self._base_of(adapter)
        name = f"policy{next(self._numbers)}"
        load_adapter(backbone, name, adapter, base_name=backbone.name, scalar_head=False)
        return Generator(backbone, name, _identity(str(adapter), self._launch), adapter)

    def release(self, generator: Generator, still_used: Sequence[Generator] = ()) -> None:
        """Nobody uses this generator any more: forget its adapter, and its backbone where no other needs that."""
        backbone = generator.backbone
        if generator.role != REFERENCE:
            del backbone.roles[generator.role]
        if set(backbone.roles) == {REFERENCE} and all(g.backbone is not backbone for g in still_used):
            self._backbones = {name: kept for name, kept in self._backbones.items() if kept is not backbone}

    def scorer(self, text: str) -> RewardScorer | ForeignScorer:
        """The reward model that `text` names, on a shared backbone where there is one."""
        if (classifier := find_classifier(text, self._launch)) is not None:
            return open_classifier(classifier, self._settings)
        folder = find_adapter(text, self._launch)
        backbone = self._base_of(folder)
        name = f"reward{next(self._numbers)}"
        return RewardScorer.attach(backbone, folder, base_name=backbone.name, name=name)

    def reward_path(self, text: str) -> Path | None:
        """The directory of the reward model that `text` names; None for one from the hub."""
        classifier = find_classifier(text, self._launch)
        return find_adapter(text, self._launch) if classifier is None else classifier.folder

    def reward_id(self, text: str) -> str:
        """The name of the run or model with the first digits of its content hash."""
        path = self.reward_path(text)
        if path is None:
            return text
        named = path.parent if path.name in ("adapter", "model") else path
        return f"{model_name(str(named), self._launch)}@{content_sha256(path)[:10]}"

    def _base_of(self, adapter: Path) -> Backbone:
        return self.backbone(base_path(adapter, self._launch))

    def _adapter_folder(self, text: str) -> Path | None:
        try:
            return find_adapter(text, self._launch)
        except DataError:
            return None


def _identity(path: str, launch: Launch) -> str:
    """The model's name with the first digits of its content hash: two models never share an identity."""
    name = model_name(path, launch)
    return f"{name}@{content_sha256(Path(path))[:10]}" if Path(path).exists() else name
