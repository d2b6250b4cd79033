"""From what a person names as a reward to the object that scores.

    runs/reward            a finished reward run: a role on the shared backbone, or a model of its own where it was
                           trained on another one
    models/judge           a sequence-classification model of any framework, as it is: a directory, a PEFT adapter or a
                           hub id (models/judge#LABEL where it has several labels)
    file.py:function       a Python function of prompts and completions (or package.module:function)
    guidelines.yaml        a list of rules
    groundedness           how much of the completion stands in the prompt's context

Finding is cheap and needs no model, so that a run directory can be checked before anything large is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward.foreign import ForeignScorer, find_classifier, open_classifier
from reward.score import RewardScorer
from rlhf.core.adapters import base_path
from rlhf.core.backbone import Backbone
from rlhf.core.callables import ScoringFunction, is_callable_spec
from rlhf.core.errors import ConfigError
from rlhf.core.inputs import find_adapter, find_path, model_name
from rlhf.core.run import Launch
from rlhf.ppo.config import GROUNDEDNESS, PPOConfig
from rlhf.ppo.rewards.base import Reward
from rlhf.ppo.rewards.groundedness import groundedness, require_contexts
from rlhf.ppo.rewards.rules import RuleList
from rlhf.ppo.rewards.terms import (
    ClassifierReward,
    ForeignModelReward,
    ModelReward,
    Term,
    TextReward,
    WeightedReward,
)

HELDOUT = "eval_reward"
Kind = Literal["run", "classifier", "function", "rules", "groundedness"]


def content_of(spec: str) -> Path | None:
    """The file behind `file.py:function`, whose content belongs to the run's identity."""
    path = Path(spec.rpartition(":")[0])
    return path if path.is_file() else None


@dataclass(frozen=True)
class Source:
    """One reward as it was named. path: the file or folder whose content belongs to the run's identity."""

    text: str
    kind: Kind
    path: Path | None

    @classmethod
    def find(cls, text: str, launch: Launch) -> Source:
        """Raises DataError where nothing of that name is there."""
        if text == GROUNDEDNESS:
            return cls(text, "groundedness", None)
        if is_callable_spec(text):
            return cls(text, "function", content_of(text))
        if text.endswith((".yaml", ".yml")):
            return cls(text, "rules", find_path(text, launch))
        if (classifier := find_classifier(text, launch)) is not None:
            return cls(text, "classifier", classifier.folder)
        return cls(text, "run", find_adapter(text, launch))

    def load(self, backbone: Backbone, launch: Launch, config: PPOConfig, role: str) -> Reward:
        """The reward. `role` names its adapter where it sits on the shared backbone."""
        if self.kind == "groundedness":
            return TextReward(self.text, groundedness, check=require_contexts)
        if self.kind == "function":
            return TextReward(self.text, _scoring_function(self.text))
        device = {"device": str(backbone.device)}  # one of several processes has a device of its own
        settings = config.model.model_copy(update=device)
        if self.kind == "classifier":
            classifier = find_classifier(self.text, launch)
            assert classifier is not None
            print(f"ppo: {self.text} is a model of its own: it is loaded beside {backbone.name}")
            model = open_classifier(classifier, settings)
            if isinstance(model, ForeignScorer):
                if config.reward_doubt and role != HELDOUT:
                    raise _no_members(self.text)
                return ClassifierReward(model, self.text, max_tokens=config.micro_batch_tokens)
            self._doubt(model, config, role)
            return ForeignModelReward(model, self.text, max_tokens=config.micro_batch_tokens)
        assert self.path is not None
        if self.kind == "rules":
            return TextReward(str(self.path), RuleList.read(self.path))
        base = base_path(self.path, launch)
        name = model_name(base, launch)
        if name == backbone.name:
            scorer = RewardScorer.attach(backbone, self.path, base_name=name, name=role)
            self._doubt(scorer, config, role)
            return ModelReward(scorer, self.text)
        print(f"ppo: {self.text} sits on another backbone, {name}: it is loaded beside {backbone.name}")
        other = Backbone.load(base, settings, name=name)
        scorer = RewardScorer.attach(other, self.path, base_name=name)
        self._doubt(scorer, config, role)
        return ForeignModelReward(scorer, self.text, max_tokens=config.micro_batch_tokens)

    def _doubt(self, scorer: RewardScorer, config: PPOConfig, role: str) -> None:
        """Let what the members disagree about pay less; the held-out reward judges as it is."""
        if not config.reward_doubt or role == HELDOUT:
            return
        if scorer.scale.num_members == 1:
            raise _no_members(self.text)
        scorer.doubt = config.reward_doubt


def _no_members(text: str) -> ConfigError:
    return ConfigError(
        f"reward_doubt needs an ensemble (`rlhf reward --ensemble 5`), of which {text} is none; expected 0"
    )


def _scoring_function(spec: str) -> ScoringFunction:
    function = ScoringFunction(spec)
    if function.num_parameters > 2:
        raise ConfigError(
            f"{spec} takes {function.num_parameters} arguments; a reward takes prompts and completions"
        )
    return function


@dataclass(frozen=True)
class RewardSources:
    """Everything that scores in a run: the terms of the reward by name, and the held-out reward of evaluations."""

    config: PPOConfig
    terms: dict[str, Source]
    heldout: Source | None

    @classmethod
    def find(cls, config: PPOConfig, launch: Launch) -> RewardSources:
        """Raises ConfigError where no reward is named and DataError where one is not there."""
        if not config.reward and not config.rewards:
            raise ConfigError(
                "--reward is required: a reward run, file.py:function, a rule list, a sequence-classification model "
                "or groundedness "
                "(several: 'rewards' in the config file)"
            )
        named = {term.label: term.source for term in config.rewards} or {"reward": config.reward or ""}
        terms = {name: Source.find(text, launch) for name, text in named.items()}
        return cls(config, terms, Source.find(config.eval_reward, launch) if config.eval_reward else None)

    @property
    def parents(self) -> dict[str, Path]:
        """What the rewards are made of, by the names of the manifest."""
        named = {f"reward.{n}" if self.config.rewards else "reward": s for n, s in self.terms.items()}
        named |= {"eval_reward": self.heldout} if self.heldout else {}
        return {name: source.path for name, source in named.items() if source.path is not None}

    def load(self, backbone: Backbone, launch: Launch) -> tuple[Reward, Reward | None]:
        """(what is maximised, what only evaluations see). Adapters on the shared backbone become roles of it."""
        loaded = {
            name: source.load(backbone, launch, self.config, f"reward{number or ''}")
            for number, (name, source) in enumerate(self.terms.items())
        }
        heldout = None
        if self.heldout is not None:
            heldout = self.heldout.load(backbone, launch, self.config, HELDOUT)
        if not self.config.rewards:
            return loaded["reward"], heldout
        terms = [
            Term(name, reward, setting.weight, setting.normalize)
            for setting, (name, reward) in zip(self.config.rewards, loaded.items(), strict=True)
        ]
        return WeightedReward(terms), heldout
