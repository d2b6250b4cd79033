"""Settings of `rlhf prefer` and `rlhf best-of-n`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field, ValidationError, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings
from rlhf.core.validation import problems
from rlhf.ppo.config import REWARD_KINDS, PPOConfig, RewardTerm

PairMethod = Literal["dpo", "ipo", "robust", "orpo", "cpo", "simpo"]
OfflineMethod = Literal["dpo", "ipo", "robust", "orpo", "cpo", "simpo", "kto"]
OnlineMethod = Literal["grpo", "rloo", "online-dpo", "raft"]
Method = Literal["dpo", "ipo", "robust", "kto", "orpo", "cpo", "simpo", "grpo", "rloo", "online-dpo", "raft"]
OFFLINE: tuple[str, ...] = get_args(OfflineMethod)
ONLINE: tuple[str, ...] = get_args(OnlineMethod)
THROUGH_TRL = ("dpo", "ipo", "robust", "kto")

# What the papers use, where one number is not right for all.
BETA = dict.fromkeys(get_args(Method), 0.1) | {"simpo": 2.0, "raft": 0.0}
LABEL_SMOOTHING = {"robust": 0.1}
IMITATION = {"orpo": 1.0, "cpo": 1.0}
# Methods whose loss has a place for the strength of a preference, and for a share of wrong labels.
WITH_MARGINS = ("dpo", "cpo", "simpo")
WITH_SMOOTHING = ("dpo", "robust", "cpo", "simpo")
# What online methods, which learn from a reward, would leave aside without a word.
OF_RATINGS = (
    *("snapshot", "learn_from", "ties", "use_weights", "rater_weights", "margin_scale", "label_smoothing"),
    *("simpo_margin", "desirable_weight", "undesirable_weight"),
)


class OnlineSettings(Settings):
    """Rollouts and updates of the online methods; the same words as in `rlhf ppo`."""

    num_iterations: int = Field(100, ge=1, description="rollouts, each followed by its updates")
    num_prompts: int = Field(16, ge=1, description="prompts per iteration")
    samples_per_prompt: int = Field(4, ge=2, description="completions per prompt: the group")
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="a prompt that does not fit the context: stop, or leave it out and count it"
    )
    num_epochs: int = Field(1, ge=1, description="passes over each rollout")
    num_minibatches: int = Field(2, ge=1, description="optimizer steps per pass")
    clip_range: float = Field(0.2, gt=0, description="grpo, rloo: the ratio is clipped to 1 +- this")
    group_scale: bool = Field(
        True, description="grpo: divide advantages by the group's deviation, as in its paper"
    )
    score_normalization: Literal["saved", "running", "none"] = Field(
        "saved",
        description="scores to mean 0 and deviation 1 by the figures that the reward saved, or by those of the run",
    )
    score_clip: float = Field(5.0, gt=0, description="normalised scores are clipped to +- this")
    reward_doubt: float = Field(
        0.0, ge=0, description="deviations among an ensemble's members that are taken from its score"
    )
    length_penalty: float = Field(
        0.0, ge=0, description="taken from the score for every token beyond length_penalty_from"
    )
    length_penalty_from: int = Field(0, ge=0, description="tokens of a completion that cost nothing")
    missing_end_penalty: float = Field(
        1.0, ge=0, description="taken from a completion that did not end in time"
    )
    eval_every: int = Field(10, ge=1, description="iterations between evaluations")
    best_metric: str = Field(
        "eval_objective", description="figure of the evaluations whose highest value marks the best policy"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without a better best_metric after which the run ends"
    )
    save_every: int = Field(10, ge=1, description="iterations between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")


class PreferConfig(Settings):
    """Tune a policy adapter on preferences without PPO's critic.

    dpo, ipo, robust, kto, orpo, cpo, simpo learn from a snapshot of ratings; grpo, rloo, online-dpo, raft from
    samples that a reward scores.
    """

    method: Method = Field("dpo", description="how to learn; docs/choosing.md says which one when")
    backbone: str | None = Field(
        None, description="the supervised model: reference, and base of the policy's adapter"
    )
    beta: float | None = Field(
        None,
        ge=0,
        description="weight of the KL to the reference (simpo: scale of the log-probabilities, orpo: weight of the "
        "odds ratio); default 0.1, simpo 2, raft 0",
    )

    snapshot: str | None = Field(
        None, description="offline: snapshot directory of `rlhf export`, or one JSONL of preferences"
    )
    learn_from: tuple[Literal["pairs", "rankings", "thumbs", "demonstrations"], ...] = Field(
        ("pairs", "rankings", "thumbs", "demonstrations"),
        description="kinds of answers that count, where there are any; thumbs and demonstrations are for kto",
    )
    ties: Literal["half", "ignore"] = Field(
        "half", description="a tie is half a win for each side, or left out (kto leaves ties out)"
    )
    use_weights: bool = Field(True, description="weight comparisons by the snapshot's weights")
    rater_weights: Literal["none", "dawid-skene", "crowd-bt"] = Field(
        "none", description="weight answers by how reliable each rater is estimated to be"
    )
    margin_scale: float = Field(
        0.0, ge=0, description="dpo, cpo, simpo: what a unit of strength adds to the margin to be reached"
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="probability that a label is wrong: dpo, cpo, simpo (default 0) and robust (0.1)",
    )
    simpo_margin: float = Field(
        1.0, ge=0, description="simpo: gamma, the margin that every pair has to reach"
    )
    imitation_coef: float | None = Field(
        None,
        ge=0,
        description="weight of the chosen completion's negative log-likelihood per token; default 1 for orpo and cpo, "
        "else 0",
    )
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of what was found good")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of what was found bad")
    num_epochs: int = Field(2, ge=1, description="passes over the examples, at most")
    batch_size: int = Field(32, ge=2, description="examples per optimizer step")
    patience: int = Field(2, ge=1, description="epochs without a better validation loss before it stops")
    max_tokens: int | None = Field(
        None, ge=8, description="longest prompt + completion; default the model's context"
    )
    on_too_long: Literal["error", "drop"] = Field(
        "error", description="an example longer than max_tokens: stop, or leave it out and count it"
    )
    near_duplicates: float = Field(
        0.8, ge=0, le=1, description="prompts at least so similar (Jaccard) are kept in one split; 0 is off"
    )
    save_steps: int = Field(
        200, ge=1, description="optimizer steps between checkpoints; also after every epoch"
    )
    engine: Literal["native", "trl"] = Field(
        "native",
        description="who trains dpo, ipo, robust, kto: this project's loop, or trl's trainers as the reference",
    )

    reward: str | None = Field(None, description=f"online: {REWARD_KINDS}")
    rewards: tuple[RewardTerm, ...] = Field(
        (),
        description="instead of reward: terms of a weighted sum, each with source, weight, name, normalize",
    )
    prompts: str | None = Field(None, description="online: JSONL of prompts to train on")
    eval_prompts: str | None = Field(None, description="online: JSONL of held-out prompts")
    eval_reward: str | None = Field(
        None, description=f"online: a second reward that only evaluations see: {REWARD_KINDS}"
    )
    sampling: SamplingSettings = Field(default_factory=SamplingSettings, description="online: how to sample")
    online: OnlineSettings = Field(default_factory=OnlineSettings)

    budget_seconds: float | None = Field(
        None, gt=0, description="end when training has taken so long; evaluations are not counted"
    )
    budget_tokens: int | None = Field(
        None,
        ge=1,
        description="end when so many tokens went through the model (one forward counts 1, with its backward 3)",
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=1e-4, schedule="cosine", warmup_steps=10)
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward and backward")
    trunk_cache: bool = Field(True, description="compute the layers below the adapter once")
    trunk_cache_gib: float = Field(8.0, gt=0, description="offline: memory for the cached trunk states")
    gradient_checkpointing: bool = Field(False, description="recompute the top layers in the backward pass")
    seed: int = Field(0, ge=0, description="seed of everything random")

    # ---- what the method makes of them -------------------------------------------------------------------

    @property
    def is_online(self) -> bool:
        return self.method in ONLINE

    @property
    def kl_weight(self) -> float:
        """beta, or the method's own."""
        return BETA[self.method] if self.beta is None else self.beta

    @property
    def flip_rate(self) -> float:
        """label_smoothing, or the method's own."""
        return LABEL_SMOOTHING.get(self.method, 0.0) if self.label_smoothing is None else self.label_smoothing

    @property
    def imitation(self) -> float:
        """imitation_coef, or the method's own."""
        return IMITATION.get(self.method, 0.0) if self.imitation_coef is None else self.imitation_coef

    def as_ppo(self) -> PPOConfig:
        """The same rollouts in the settings of `rlhf ppo`, whose engine the online methods run on."""
        shared = (
            *(
                "backbone",
                "reward",
                "rewards",
                "prompts",
                "eval_prompts",
                "eval_reward",
                "sampling",
                "lora",
                "optim",
            ),
            *("model", "micro_batch_tokens", "trunk_cache", "gradient_checkpointing", "seed"),
        )
        values = {name: getattr(self, name) for name in shared}
        ours = {name: getattr(self.online, name) for name in OnlineSettings.model_fields}
        del ours["group_scale"]
        try:
            return PPOConfig(**values, **ours, kl_coef=self.kl_weight, value_coef=0.0)
        except ValidationError as error:
            path, message = problems(error)[0]
            raise ValueError(f"{'.'.join(path)}: {message}" if path else message) from error

    @model_validator(mode="after")
    def _fits_together(self) -> PreferConfig:
        if self.budget_seconds is not None and self.budget_tokens is not None:
            raise ValueError("budget_seconds and budget_tokens were both given; expected one of them")
        (self._check_online if self.is_online else self._check_offline)()
        return self

    def _changed(self, names: Sequence[str]) -> list[str]:
        """Those of these settings that are not what they are by default."""
        fields = type(self).model_fields
        return [
            name
            for name in names
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]

    def _check_online(self) -> None:
        if given := self._changed(OF_RATINGS):
            raise ValueError(
                f"{given[0]} was given, but {self.method} learns from a reward and not from ratings; what it has of "
                "its own is below online"
            )
        if self.engine == "trl":
            raise ValueError(f"engine trl trains {', '.join(THROUGH_TRL)}; found method {self.method}")
        units = self.online.num_prompts * (
            self.online.samples_per_prompt if self.method in ("grpo", "rloo") else 1
        )
        if units < self.online.num_minibatches:
            raise ValueError(
                f"an iteration of {self.method} has {units} examples; expected at least online.num_minibatches "
                f"({self.online.num_minibatches})"
            )
        self.as_ppo()  # raises for what does not fit there either

    def _check_offline(self) -> None:
        if given := self._changed(("reward", "rewards", "prompts", "eval_prompts", "eval_reward", "online")):
            raise ValueError(
                f"{given[0]} was given, but {self.method} learns from a snapshot of ratings; online methods are "
                f"{', '.join(ONLINE)}"
            )
        # Demonstrations are good ones only: beside other answers they count, alone they tell nothing apart.
        usable = {"pairs", "rankings"} | ({"thumbs"} if self.method == "kto" else set())
        if not usable & set(self.learn_from):
            raise ValueError(
                f"learn_from is {list(self.learn_from)}; {self.method} learns from {', '.join(sorted(usable))}"
            )
        if self.margin_scale and self.method not in WITH_MARGINS:
            raise ValueError(f"margin_scale is for {', '.join(WITH_MARGINS)}; found method {self.method}")
        if self.label_smoothing and self.method not in WITH_SMOOTHING:
            raise ValueError(
                f"label_smoothing is for {', '.join(WITH_SMOOTHING)}; found method {self.method}"
            )
        if self.imitation_coef and self.method == "kto":
            raise ValueError("imitation_coef is for methods that learn from pairs; found method kto")
        if self.sampling.temperature == 0:
            raise ValueError(
                f"sampling.temperature is 0; {self.method} compares log-probabilities, and greedy has none"
            )
        if self.kl_weight == 0:
            raise ValueError(f"beta is 0; {self.method} needs a positive one")
        if self.engine == "trl":
            self._check_trl()

    def _check_trl(self) -> None:
        """trl's trainers know no ties, weights or margins: what would be left out without a word is refused."""
        if self.method not in THROUGH_TRL:
            raise ValueError(
                f"engine trl trains {', '.join(THROUGH_TRL)} (trl's stable trainers); found method {self.method}"
            )
        wrong = {
            "ties": self.ties != "ignore" and self.method != "kto",
            "use_weights": self.use_weights,
            "rater_weights": self.rater_weights != "none",
            "margin_scale": bool(self.margin_scale),
            "imitation_coef": bool(self.imitation_coef),
            "label_smoothing": bool(self.label_smoothing) and self.method != "robust",
            "budget_seconds": self.budget_seconds is not None,
            "budget_tokens": self.budget_tokens is not None,
        }
        if self.sampling.temperature != 1:
            raise ValueError(
                f"engine trl has no place for sampling.temperature = {self.sampling.temperature}; expected 1, or "
                "engine native"
            )
        expected = {"ties": "ignore", "use_weights": "false", "rater_weights": "none"}
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"engine trl has no place for {name} = {getattr(self, name)}; expected "
                    f"{expected.get(name, 'none')}, or engine native"
                )


class BestOfNConfig(Settings):
    """Draw several completions of each prompt and keep the one that a reward scores highest.

    Writes OUT/demonstrations.jsonl, which `rlhf sft --data` takes (one step of RAFT, arXiv:2304.06767), and
    OUT/completions.jsonl with every completion and its score.
    """

    model_path: str | None = Field(None, description="model directory, ppo or prefer run, adapter or hub id")
    reward: str | None = Field(None, description=REWARD_KINDS)
    prompts: str | None = Field(None, description="JSONL of prompts")
    n: int = Field(4, ge=1, description="completions per prompt")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="a prompt that does not fit the context: stop, or leave it out and count it"
    )
    min_score: float | None = Field(
        None, description="keep no completion below this raw score, however good it is among the n"
    )
    finished_only: bool = Field(True, description="keep no completion that did not end in time")
    max_prompts: int | None = Field(
        None, ge=1, description="take this many prompts from the start of the file"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(0, ge=0, description="seed of the sampling")
