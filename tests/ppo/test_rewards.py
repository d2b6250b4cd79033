"""What PPO maximises: sums of rewards, a model on another backbone, how scores are shaped, what a bad one costs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import rlhf.ppo.train as ppo_train
from reward.score import RewardScale, RewardScorer
from rlhf.core.adapters import SCORE_KEY, save_reward
from rlhf.core.backbone import Backbone
from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Message
from rlhf.core.run import Launch, read_manifest
from rlhf.core.sequences import Sequences
from rlhf.core.settings import LoraSettings, ModelSettings
from rlhf.ppo.config import PPOConfig, RewardTerm
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.rewards import (
    ClassifierReward,
    ForeignModelReward,
    ModelReward,
    RewardSources,
    Term,
    TextReward,
    WeightedReward,
    score_completions,
)
from rlhf.ppo.scores import ScoreNormalizer, ScoreScale, clipped_share, shaped_scores
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]
MakeConfig = Callable[..., PPOConfig]


class Fixed:
    """Scores given beforehand, one more for each further row."""

    name = "fixed"

    def __init__(self, first: float, mean: float = 0.0, std: float = 1.0) -> None:
        self.first, self.mean, self.std = first, mean, std

    def score(self, completions: Any, prompts: Any, texts: Any) -> Tensor:
        return self.first + torch.arange(len(texts), dtype=torch.float32)


class Says:
    """Whatever it is told to say."""

    name, mean, std = "my reward", 0.0, 1.0

    def __init__(self, answer: Callable[[int], Tensor]) -> None:
        self.answer = answer

    def score(self, completions: Any, prompts: Any, texts: Any) -> Tensor:
        return self.answer(len(texts))


def save_reward_run(folder: Path, backbone: Backbone, scale: RewardScale, seed: int = 0) -> None:
    """A reward adapter with a random head, as `rlhf reward` leaves it."""
    role = backbone.add_role("reward", LoraSettings(r=2), seed=seed, scalar_head=True)
    assert role.head is not None
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        role.head.weight.copy_(torch.randn(role.head.weight.shape, generator=generator))
    save_reward(role, folder, backbone)
    scale.save(folder)


def test_what_the_members_of_an_ensemble_disagree_about_pays_less(ppo_launch: Launch) -> None:
    root = ppo_launch.workspace
    base = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    save_reward_run(root / "runs" / "single", base, RewardScale(0.0, 1.0, 1.0))
    folder = root / "runs" / "ensemble"
    shutil.copytree(root / "runs" / "single", folder)
    RewardScale(0.0, 1.0, 1.0, num_members=2).save(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    apart = torch.randn(1, base.hidden_size, generator=torch.Generator().manual_seed(9))
    heads = torch.cat([tensors[SCORE_KEY] + apart, tensors[SCORE_KEY] - apart])
    save_file({"heads": heads}, folder / "heads.safetensors")

    def scorer(name: str, doubt: float) -> RewardScorer:
        config = PPOConfig(
            reward=f"runs/{name}", eval_reward="runs/ensemble", eval_prompts="eval.jsonl", reward_doubt=doubt
        )
        backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
        reward, heldout = RewardSources.find(config, ppo_launch).load(backbone, ppo_launch)
        assert isinstance(reward, ModelReward)
        assert isinstance(heldout, ModelReward)
        assert heldout.scorer.doubt == 0  # the judge judges as it is
        return reward.scorer

    plain, doubting = scorer("ensemble", 0.0), scorer("ensemble", 1.5)
    sequences = Sequences(doubting.backbone, [[5, 6, 7], [8, 9]], max_tokens=64)
    # members at score +- apart . h: their deviation is |apart . h|
    spread = (doubting.backbone.hidden("reward", torch.tensor([[5, 6, 7]]))[0, -1] @ apart[0]).abs().item()
    gap = (
        plain.score_all(Sequences(plain.backbone, [[5, 6, 7]], max_tokens=64))
        - doubting.score_all(sequences)[:1]
    )
    assert gap.item() == pytest.approx(1.5 * spread, rel=1e-4)
    with pytest.raises(ConfigError, match=r"reward_doubt needs an ensemble .*runs/single is none"):
        scorer("single", 1.0)


# ---- sums ------------------------------------------------------------------------------------------------


def test_a_sum_weighs_normalised_terms(make_trainer: MakeTrainer) -> None:
    reward = WeightedReward(
        [
            Term("a", Fixed(10.0, mean=12.0, std=2.0), weight=0.5),
            Term("b", Fixed(3.0, mean=100.0, std=9.0), weight=-2.0, normalize=False),
        ]
    )
    trainer, stream = make_trainer(reward=reward)
    batch = trainer.collect(stream)
    # row i: 0.5 * (10 + i - 12) / 2 - 2 * (3 + i)
    expected = [0.25 * (i - 2) - 2 * (3 + i) for i in range(6)]
    assert batch.scores_B.tolist() == pytest.approx(expected)
    assert batch.terms["a"].tolist() == [10.0 + i for i in range(6)]
    assert list(batch.terms) == ["a", "b"]


def test_every_term_is_logged_and_part_of_the_runs_identity(
    ppo_launch: Launch, ppo_config: MakeConfig
) -> None:
    root = ppo_launch.workspace
    (root / "rules.yaml").write_text("rules:\n  - min_characters: 1\n    weight: -1\n")
    code = f"{root}/reward.py"
    rewards = [
        {"source": f"{code}:letters", "weight": 2.0},
        {"source": "rules.yaml", "name": "not-empty"},
        {"source": f"{code}:plain", "weight": -0.5, "normalize": False},
    ]
    config = ppo_config(reward=None, rewards=rewards, num_iterations=1, best_metric="eval_score/plain")
    ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    for row, prefix in zip(read_metrics(out / "metrics.jsonl"), ("eval_", ""), strict=True):
        terms = [row[f"{prefix}score/{name}"] for name in ("letters", "not-empty", "plain")]
        assert row[f"{prefix}score"] == pytest.approx(2 * terms[0] + terms[1] - 0.5 * terms[2], abs=1e-6)
        assert 0 < terms[2] <= 1
    manifest = read_manifest(out)
    assert {"reward.letters", "reward.not-empty", "reward.plain"} <= set(manifest.parents)
    sample = json.loads((out / "samples" / "iteration-000001.jsonl").read_text().splitlines()[0])
    assert {"prompt", "completion", "score", "score/plain", "kl", "finished"} <= set(sample)
    (root / "rules.yaml").write_text("rules:\n  - min_characters: 2\n    weight: -1\n")
    with pytest.raises(ConfigError, match=r"content of reward\.not-empty: sha256"):
        ppo_train.run(config, ppo_launch)


def test_names_of_terms_come_from_their_sources() -> None:
    sources = ["judge.py:polite", "a/guidelines.yaml", "runs/reward", "groundedness", "pack.age:f"]
    labels = [RewardTerm(source=source).label for source in sources]
    assert labels == ["polite", "guidelines", "reward", "groundedness", "f"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "a.py:f", "rewards": [{"source": "b.py:g"}]}, "reward and rewards were both given"),
        ({"rewards": [{"source": "a.py:f"}, {"source": "b.py:f"}]}, "two rewards are called 'f'"),
        ({"rewards": [{"source": "a.py:f", "weight": 0}]}, "the weights of all rewards are 0"),
        (
            {"best_metric": "eval_heldout_score"},
            r"eval_heldout_score' .it needs eval_reward.; expected one of",
        ),
        ({"best_metric": "eval_loss"}, "expected one of eval_objective, eval_score, eval_score_normalized"),
        ({"patience": 2}, "patience was given without eval_prompts"),
        ({"eval_reward": "a.py:f"}, "eval_reward was given without eval_prompts"),
        ({"on_alarm": "stop"}, "there is no eval_reward that could raise the alarm"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig.model_validate(changes)


def test_terms_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    given = ["--rewards", '[{"source": "a.py:f"}, {"source": "groundedness", "weight": 0.5}]']
    found = load_settings(PPOConfig, None, given, "rlhf ppo")
    assert [(term.label, term.weight) for term in found.rewards] == [("f", 1.0), ("groundedness", 0.5)]
    path = tmp_path / "ppo.yaml"
    path.write_text("kl_coef: 0.1\nrewards:\n  - source: a.py:f\n  - weight: 2\n")
    with pytest.raises(ConfigError, match=r"ppo.yaml:2: rewards\[1\]\.source: is missing"):
        load_settings(PPOConfig, path, [], "rlhf ppo")
    with pytest.raises(ConfigError, match=r"--rewards\[0\]\.weight: expected a valid number"):
        load_settings(PPOConfig, None, ["--rewards", '[{"source": "a", "weight": "x"}]'], "rlhf ppo")


def test_a_run_without_any_reward_says_what_one_is(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"--reward is required: a reward run, file\.py:function, a rule list"
    ):
        ppo_train.run(ppo_config(reward=None), ppo_launch)
    with pytest.raises(DataError, match=r"guide\.yaml: no such file"):
        ppo_train.run(ppo_config(reward="guide.yaml"), ppo_launch)
    with pytest.raises(DataError, match=r"groundedness: prompt p-.* has no 'context'"):
        ppo_train.run(ppo_config(reward="groundedness"), ppo_launch)
    assert ppo_launch.out is not None
    assert not ppo_launch.out.exists()


# ---- what a reward may not answer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: torch.tensor([0.0] * 3 + [math.nan] * (n - 3)), "nan for row 3 .prompt p-"),
        (lambda n: torch.full((n,), math.inf), "inf for row 0 .prompt p-"),
        (lambda n: torch.zeros(n - 1), r"scores of shape \(5,\); expected \(6,\)"),
        (lambda n: torch.zeros(n, 1), r"scores of shape \(6, 1\); expected \(6,\)"),
    ],
)
def test_an_impossible_score_names_the_reward_and_the_row(
    make_trainer: MakeTrainer, answer: Callable[[int], Tensor], message: str
) -> None:
    # One row per micro-batch: rows are counted in the rollout all the same.
    trainer, stream = make_trainer(reward=Says(answer), micro_batch_tokens=1)
    with pytest.raises(DataError, match=f"^my reward returned {message}"):
        trainer.collect(stream)
    summed = WeightedReward([Term("good", Fixed(0.0)), Term("bad", Says(answer))])
    trainer, stream = make_trainer(reward=summed)
    with pytest.raises(DataError, match=f"^my reward returned {message}"):
        trainer.collect(stream)


def test_a_function_is_asked_once_about_the_whole_rollout(make_trainer: MakeTrainer) -> None:
    asked: list[int] = []

    def count(prompts: Any, texts: Any) -> list[float]:
        asked.append(len(texts))
        return [0.0] * len(texts)

    trainer, stream = make_trainer(
        reward=TextReward("count", count), micro_batch_tokens=1, samples_per_prompt=2
    )
    trainer.collect(stream)
    assert asked == [12]


def test_a_function_of_three_arguments_is_no_reward(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    path = ppo_launch.workspace / "judge.py"
    path.write_text("def better(prompts, first, second):\n    return [0.0] * len(prompts)\n")
    with pytest.raises(ConfigError, match=r"judge\.py:better takes 3 arguments; a reward takes prompts and"):
        ppo_train.run(ppo_config(reward=f"{path}:better"), ppo_launch)


# ---- reward models ---------------------------------------------------------------------------------------


@pytest.fixture
def two_models(
    workspace: Launch, tiny_model: Callable[..., Path], load_tiny: Callable[..., Backbone]
) -> Launch:
    """models/base is a Llama; runs/own is a reward on it, runs/foreign one on a SmolLM3 with another tokenizer."""
    root = workspace.workspace
    save_reward_run(root / "runs" / "own", load_tiny(), RewardScale(0.5, 2.0, 1.0), seed=1)
    foreign = tiny_model("smollm3", pad_is_eos=True, chat_template=True, context=256)
    (root / "models" / "other").symlink_to(foreign)
    backbone = Backbone.load(foreign, ModelSettings(device="cpu"), name="models/other")
    save_reward_run(root / "runs" / "foreign", backbone, RewardScale(-1.0, 3.0, 1.0), seed=2)
    return workspace


def test_a_reward_on_another_backbone_reads_the_text_in_its_own_tokens(
    two_models: Launch, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = two_models.workspace
    config = PPOConfig.model_validate(
        {
            "rewards": [{"source": "runs/own"}, {"source": "runs/foreign", "weight": 0.5}],
            "model": {"device": "cpu"},
        }
    )
    backbone = Backbone.load(root / "models" / "base", config.model, name="models/base")
    reward, _ = RewardSources.find(config, two_models).load(backbone, two_models)
    said = capsys.readouterr().out
    assert (
        said == "ppo: runs/foreign sits on another backbone, models/other: it is loaded beside models/base\n"
    )
    assert isinstance(reward, WeightedReward)
    own, foreign = reward.parts["own"], reward.parts["foreign"]
    assert isinstance(own, ModelReward)
    assert own.scorer.backbone is backbone
    assert isinstance(foreign, ForeignModelReward)
    trainer, stream = make_trainer(sampling={"max_completion_tokens": 24, "temperature": 3.0}, num_prompts=12)
    batch = trainer.collect(stream)
    assert 0 < int(batch.completions.finished_B.sum()) < 12
    found = score_completions(foreign, batch.completions, batch.prompts, batch.texts).total_B
    # By hand: one row at a time through a fresh copy of the other model.
    other = Backbone.load(root / "models" / "other", config.model, name="models/other")
    scorer = RewardScorer.attach(other, root / "runs" / "foreign")
    assert scorer.role.head is not None
    for row, (prompt, text) in enumerate(zip(batch.prompts, batch.texts, strict=True)):
        ids = other.codec.prompt_ids(prompt.messages)
        ids += other.codec.completion_ids(text, finished=bool(batch.completions.finished_B[row]))
        with torch.no_grad():
            hidden_H = other.hidden("reward", torch.tensor([ids]))[0, -1]
            assert found[row].item() == pytest.approx(scorer.role.head(hidden_H).item(), abs=1e-4)
    assert found.std() > 0.01
    assert (foreign.mean, foreign.std) == (-1.0, 3.0)


def test_what_does_not_fit_a_foreign_context_is_cut_out_loud(
    two_models: Launch, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Backbone.load(
        two_models.workspace / "models" / "other", ModelSettings(device="cpu"), name="models/other"
    )
    scorer = RewardScorer.attach(other, two_models.workspace / "runs" / "foreign")
    reward = ForeignModelReward(scorer, "runs/foreign", max_tokens=4096)
    trainer, stream = make_trainer(num_prompts=2)
    batch = trainer.collect(stream)
    long, short = "birds " * 260, "birds"
    scores = reward.score(batch.completions, batch.prompts, [long, short])
    assert "1 of 2 completions do not fit the context of runs/foreign (256 tokens)" in capsys.readouterr().out
    # The end of the row is what is read: a longer beginning changes nothing any more.
    assert reward.score(batch.completions, batch.prompts, ["birds " * 280, short]).tolist() == pytest.approx(
        scores.tolist(), abs=1e-5
    )
    capsys.readouterr()
    reward.score(batch.completions, batch.prompts, [short, short])
    assert capsys.readouterr().out == ""
    fitting = stream[0].prompt
    reward.check_prompts([fitting])
    with pytest.raises(DataError, match=r"runs/foreign: prompt p-\w+ has \d+ tokens; .* context of 256"):
        reward.check_prompts(
            [fitting, fitting.model_copy(update={"messages": (Message(role="user", content=long),)})]
        )


def test_a_run_with_own_and_foreign_models(
    two_models: Launch, ppo_launch: Launch, ppo_config: MakeConfig
) -> None:
    """Whole: the foreign one steers, the own one watches; the policy's backbone is the same object for both roles."""
    config = ppo_config(reward="runs/foreign", eval_reward="runs/own", num_iterations=2)
    ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    rows = read_metrics(out / "metrics.jsonl")
    assert {"eval_score", "eval_heldout_score", "eval_alarm"} <= set(rows[-1])
    assert {"reward", "eval_reward"} <= set(read_manifest(out).parents)


@pytest.fixture
def with_judge(two_models: Launch, tiny_model: Callable[..., Path]) -> Launch:
    """models/judge is a sequence classifier of plain transformers with a context of 64 and a template of its own."""
    base = tiny_model("qwen3", pad_is_eos=True, chat_template=True, context=64)
    folder = two_models.workspace / "models" / "judge"
    config = AutoConfig.from_pretrained(base, num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return two_models


def test_a_classifier_of_another_framework_steers(
    with_judge: Launch, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PPOConfig.model_validate(
        {"rewards": [{"source": "models/judge", "weight": 0.5}], "model": {"device": "cpu"}}
    )
    sources = RewardSources.find(config, with_judge)
    assert sources.terms["judge"].kind == "classifier"
    assert sources.parents == {"reward.judge": with_judge.workspace / "models" / "judge"}
    backbone = Backbone.load(with_judge.workspace / "models" / "base", config.model, name="models/base")
    reward, _ = sources.load(backbone, with_judge)
    assert "models/judge is a model of its own: it is loaded beside models/base" in capsys.readouterr().out
    assert isinstance(reward, WeightedReward)
    judge = reward.parts["judge"]
    assert isinstance(judge, ClassifierReward)
    trainer, stream = make_trainer(num_prompts=6)
    batch = trainer.collect(stream)
    long = "birds " * 80
    texts = [*batch.texts[:5], long]
    found = judge.score(batch.completions, batch.prompts, texts)
    assert "1 of 6 completions do not fit the context of models/judge (64 tokens)" in capsys.readouterr().out
    # By hand: plain transformers, one row at a time, read at its last token.
    model = AutoModelForSequenceClassification.from_pretrained(
        with_judge.workspace / "models" / "judge"
    ).eval()
    model.config.pad_token_id = None
    tokenizer = judge.scorer.tokenizer
    for row, (prompt, text) in enumerate(zip(batch.prompts, texts, strict=True)):
        turns = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)[-64:]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert found[row].item() == pytest.approx(expected, abs=1e-4)
    assert found.std() > 0.01
    judge.check_prompts(batch.prompts)
    too_long = batch.prompts[0].model_copy(update={"messages": (Message(role="user", content=long),)})
    with pytest.raises(DataError, match=r"models/judge: prompt p-\w+ has \d+ tokens; .* context of 64"):
        judge.check_prompts([too_long])


# ---- from scores to what is maximised --------------------------------------------------------------------


def test_penalties_are_taken_after_clipping(make_trainer: MakeTrainer) -> None:
    sampling = {"max_completion_tokens": 40, "temperature": 3.0}
    trainer, stream = make_trainer(
        sampling=sampling,
        num_prompts=24,
        score_clip=2.0,
        missing_end_penalty=0.75,
        length_penalty=0.1,
        length_penalty_from=25,
    )
    batch = trainer.collect(stream)
    lengths, ends = batch.completions.lengths_B.tolist(), batch.completions.finished_B.tolist()
    assert min(lengths) < 25 < max(lengths)
    assert len(set(ends)) == 2
    scores_B = torch.linspace(-9.0, 9.0, 24)
    found = shaped_scores(scores_B, batch.completions, ScoreScale(1.0, 2.0), trainer.config).tolist()
    rows = zip(scores_B.tolist(), lengths, ends, strict=True)
    expected = [
        max(-2.0, min(2.0, (s - 1) / 2)) - 0.75 * (not end) - 0.1 * max(0, length - 25)
        for s, length, end in rows
    ]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("mean", "std", "prior"), [(0.0, 1.0, 0), (4.0, 2.0, 6)])
def test_running_figures_are_those_of_all_completions(mean: float, std: float, prior: int) -> None:
    """The saved figures count as one rollout (6 completions: here as 3 of mean - std and 3 of mean + std)."""
    config = PPOConfig(num_prompts=6, num_minibatches=2, score_normalization="running")
    scores = ScoreNormalizer(Fixed(0.0, mean=mean, std=std), config)
    assert scores.scale == scores.fixed == ScoreScale(mean, std)
    seen = [mean - std] * (prior // 2) + [mean + std] * (prior // 2)
    for values in ([1.0, 2.0, 3.0, 4.0, 5.0, 9.0], [100.0, 102.0, 101.0, 99.0, 98.0, 97.5]):
        scores.observe(torch.tensor(values))
        seen += values
        centre = sum(seen) / len(seen)
        spread = (sum((v - centre) ** 2 for v in seen) / len(seen)) ** 0.5
        assert (scores.scale.mean, scores.scale.std) == pytest.approx((centre, spread), rel=1e-9)
    assert scores.fixed == ScoreScale(mean, std)  # evaluations keep their yardstick
    again = ScoreNormalizer(Fixed(0.0, mean=mean, std=std), config)
    again.load_state(scores.state())
    assert again.scale == scores.scale


def test_scores_without_any_spread_are_not_blown_up() -> None:
    config = PPOConfig(score_normalization="running")
    scores = ScoreNormalizer(Fixed(0.0), config)
    scores.observe(torch.full((32,), 0.3))
    assert scores.scale.std == 1.0
    assert scores.scale.mean == pytest.approx(0.3)


def test_none_leaves_scores_as_they_are(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer(reward=Fixed(0.0, mean=7.0, std=3.0), score_normalization="none")
    batch = trainer.collect(stream)
    assert trainer.scores.scale == ScoreScale(0.0, 1.0)
    assert batch.scores_B.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_clipped_scores_are_counted() -> None:
    scores_B = torch.tensor([-30.0, 4.0, 10.0, 21.0])  # normalised: -16, 1, 4, 9.5
    config = PPOConfig(score_clip=4.0)
    assert clipped_share(scores_B, ScoreScale(2.0, 2.0), config) == 0.5


def test_the_clamp_of_the_log_ratio_is_counted(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer()
    batch = trainer.collect(stream)
    targets = trainer.targets(batch)
    stats = trainer.update(batch, targets)
    seconds = {"rollout": 1.0, "update": 1.0}
    assert trainer.figures(batch, targets, stats, seconds)["kl_clamp_share"] == 0.0
    count = int(batch.completions.mask_BT.sum())
    batch.ref_logprobs_BT[0, 0] -= 50.0
    batch.ref_logprobs_BT[1, 0] += 50.0
    figures = trainer.figures(batch, targets, stats, seconds)
    assert figures["kl_clamp_share"] == pytest.approx(2 / count)
