"""Settings of `rlhf retrain`: the whole of retrain.yaml. Torch-free."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, model_validator

from reward.config import RewardConfig
from rlhf.core.config import Settings
from rlhf.core.settings import SamplingSettings
from rlhf.ppo.config import PPOConfig

# How the command runs, not what a round is made of: the same work has the same key however it was started.
NOT_WORK = frozenset({"once", "watch", "now"})
FILLED_IN_REWARD = ("backbone", "snapshot", "prompt_part", "seed")
FILLED_IN_PPO = (
    *("backbone", "reward", "rewards", "prompts", "eval_prompts", "eval_reward"),
    *("init_adapter", "reference_adapter", "seed"),
)


class TriggerSettings(Settings):
    """When a round begins by itself."""

    min_new: int = Field(200, ge=1, description="new accepted comparisons since the last round")
    min_agreement: float = Field(
        0.55, ge=0, le=1, description="raters must agree on this share of the pairs that two of them decided"
    )
    cooldown_s: float = Field(3600, ge=0, description="seconds since the end of the last round")
    drift: Literal["ignore", "alert", "trigger"] = Field(
        "alert",
        description="what a drift of prompts or ratings does: nothing, an alert, or an alert and a round",
    )
    drift_psi: float = Field(
        0.25, gt=0, description="population-stability index of new prompts against old ones that is a drift"
    )
    check_every_s: float = Field(60, gt=0, description="with --watch: seconds between two looks at the store")


class SnapshotSettings(Settings):
    """How ratings become the data of a round."""

    train: float = Field(0.8, gt=0, lt=1, description="share of prompt groups for training")
    validation: float = Field(0.1, ge=0, lt=1, description="share for choosing epochs and the temperature")
    half_life_days: float | None = Field(
        None, gt=0, description="a comparison counts half when it is this old; default all alike"
    )
    exclude: tuple[str, ...] = Field((), description="names of raters whose answers are left out of training")

    @property
    def fractions(self) -> tuple[float, float, float]:
        return (self.train, self.validation, round(1 - self.train - self.validation, 9))


class WarmStartSettings(Settings):
    """What a round takes over from the champion."""

    policy: Literal["champion", "backbone"] = Field(
        "champion", description="the policy begins as the champion's adapter, or anew"
    )
    reference: Literal["backbone", "champion"] = Field(
        "backbone", description="what PPO measures KL from: the supervised backbone, or the champion"
    )
    replay: float = Field(
        0.5, ge=0, lt=1, description="share of PPO's prompts that are from ratings of earlier rounds"
    )


class GateSettings(Settings):
    """What a candidate has to be. A limit that is null is not asked about."""

    min_new: int = Field(50, ge=0, description="new comparisons since the champion's round, at least")
    min_comparisons: int = Field(200, ge=1, description="decided comparisons in all, at least")
    min_test_comparisons: int = Field(20, ge=1, description="of them in the test split, at least")
    rater_floor: float = Field(
        0.5, ge=0, le=1, description="nobody may agree with the others significantly less often than this"
    )
    accuracy_drop: float = Field(
        0.03, ge=0, description="the reward model may be this much less accurate than the champion's"
    )
    max_calibration_error: float | None = Field(
        0.15, gt=0, description="of the reward model on its test split"
    )
    max_bias_gap: float | None = Field(
        0.75, gt=0, description="score gap on counterfactual pairs, in deviations of the score"
    )
    min_win_rate: float = Field(
        0.5, ge=0, le=1, description="the lower bound of the win rate over the champion must be above this"
    )
    max_kl: float | None = Field(20.0, gt=0, description="nats per completion from the backbone")
    max_perplexity_ratio: float | None = Field(
        1.1, gt=1, description="perplexity on general_text, as a multiple of the backbone's"
    )
    max_length_change: float | None = Field(
        0.5, gt=0, description="change of the mean length against the champion, as a share of it"
    )
    max_unsafe_rise: float = Field(
        0.01, ge=0, description="share of unsafe answers, at most this much more than the champion's"
    )
    hacking: bool = Field(True, description="PPO's alarm of a gamed reward keeps a candidate out")
    slice_by: str = Field("source", description="what groups held-out prompts: source, or a key of metadata")
    max_slice_fall: float = Field(
        0.15, ge=0, lt=0.5, description="no group may lose more than 0.5 + this of its comparisons"
    )
    min_slice: int = Field(20, ge=2, description="prompts that a group needs to be asked about")

    general_text: str | None = Field(None, description="JSONL of {text}, for the perplexity")
    safety_prompts: str | None = Field(
        None,
        description="JSONL of prompts that are answered and looked at for safety; default the held-out ones",
    )
    safety_rules: str | None = Field(
        None, description="rule list (.yaml): an answer whose rules sum below 0 is unsafe"
    )
    safety_classifier: str | None = Field(
        None, description="file.py:function of (prompts, completions): an answer above 0.5 is unsafe"
    )

    people: int = Field(
        0,
        ge=0,
        description="pairs that people compare blind: the size of the test, fixed beforehand; 0 asks nobody",
    )
    people_overlap: int = Field(1, ge=1, description="people per pair")
    people_error: float = Field(
        0.05, gt=0, lt=0.5, description="chance that people's test calls a candidate better that is not"
    )
    wait_for_people: bool = Field(
        False,
        description="wait for their verdict, or promote on the judge's and let theirs confirm or undo it",
    )


class CanarySettings(Settings):
    """A candidate is tried on the share of the traffic that `rlhf serve --canary-share` gives it, where it serves."""

    health_url: str | None = Field(
        None,
        description="health check of the endpoint that serves the registry's names, such as "
        "http://127.0.0.1:8000/health; without one, or where nobody answers, the canary is skipped",
    )
    project: str = Field(
        "live", description="project of the feedback store that holds the thumbs of the chat"
    )
    min_thumbs: int = Field(50, ge=1, description="thumbs on the candidate's answers, at least")
    max_fall: float = Field(
        0.1, ge=0, le=1, description="how far its share of thumbs up may lie below the champion's"
    )
    timeout_s: float = Field(86_400, gt=0, description="seconds after which too few thumbs keep it out")


class RetrainConfig(Settings):
    """Turn new ratings into a better champion, again and again, or say why not.

    trigger -> snapshot -> reward -> gates -> ppo -> evaluate -> gates -> candidate -> canary -> champion
    """

    once: bool = Field(False, description="one round if one is due or unfinished, then end (for cron)")
    watch: bool = Field(False, description="look again and again, until a signal comes")
    now: bool = Field(False, description="begin a round although no trigger asks for one; its gates stay")

    project: str = Field(
        "default", description="project of the feedback store whose ratings are learned from"
    )
    backbone: str | None = Field(
        None, description="the supervised model: base of all rounds, and the first champion"
    )
    prompts: str | None = Field(
        None,
        description="JSONL of prompts that PPO learns on; default the rated prompts of the training split",
    )
    heldout: str | None = Field(
        None, description="JSONL of prompts on which candidate and champion are compared"
    )
    eval_prompts: str | None = Field(
        None, description="JSONL of prompts that PPO is watched on; default those of the validation split"
    )

    trigger: TriggerSettings = Field(default_factory=TriggerSettings)
    snapshot: SnapshotSettings = Field(default_factory=SnapshotSettings)
    warm_start: WarmStartSettings = Field(default_factory=WarmStartSettings)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    ppo: PPOConfig = Field(default_factory=PPOConfig)
    sampling: SamplingSettings = Field(
        default_factory=SamplingSettings,
        description="how candidate and champion answer when they are compared",
    )
    gates: GateSettings = Field(default_factory=GateSettings)
    canary: CanarySettings = Field(default_factory=CanarySettings)
    max_heldout: int | None = Field(None, ge=2, description="take this many held-out prompts at most")
    num_probes: int = Field(
        100, ge=1, description="held-out answers that are spoiled and swapped in reward-eval"
    )
    max_attempts: int = Field(
        10,
        ge=1,
        description="starts of one step without an end (killed, out of memory) that reject the round",
    )
    seed: int = Field(0, ge=0, description="seed of splits and of the first round; each round counts on")

    @model_validator(mode="after")
    def _fits_together(self) -> RetrainConfig:
        if self.once and self.watch:
            raise ValueError("once and watch were both given; expected one of them")
        for part, names, model in (
            ("reward", FILLED_IN_REWARD, self.reward),
            ("ppo", FILLED_IN_PPO, self.ppo),
        ):
            default = type(model)()
            given = [name for name in names if getattr(model, name) != getattr(default, name)]
            if given:
                raise ValueError(f"{part}.{given[0]} is filled in by every round; leave it out")
        if self.snapshot.train + self.snapshot.validation >= 1:
            raise ValueError("snapshot.train + snapshot.validation leave nothing for the test split")
        return self

    def files(self) -> tuple[str, ...]:
        """The files that are named and given, as they are named."""
        gates = self.gates
        named = (
            *(self.heldout, self.prompts, self.eval_prompts),
            *(gates.general_text, gates.safety_prompts, gates.safety_rules),
        )
        return tuple(name for name in named if name is not None)

    def work(self) -> str:
        """A hash of everything that decides what a round does."""
        values = self.model_dump(mode="json", exclude=set(NOT_WORK))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
