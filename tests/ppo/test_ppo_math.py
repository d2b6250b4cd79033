"""The formulas of PPO against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rlhf.core.backbone import Backbone
from rlhf.core.errors import DataError
from rlhf.ppo.advantages import gae, shaped_rewards, whiten
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import KLController, k1, k3
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.prompts import PromptStream, load_prompts

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_rewards_are_kl_everywhere_and_the_score_on_the_last_token() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 99.0]])
    found = shaped_rewards(torch.tensor([2.0, -1.0]), kl, MASK, 0.5)
    # -0.5 kl, plus 2 at t = 2 of the first row and -1 at t = 1 of the second; padding stays 0
    torch.testing.assert_close(found, torch.tensor([[-0.05, -0.1, 1.85], [-0.2, -1.25, 0.0]]))
    with pytest.raises(ValueError, match="shapes differ"):
        shaped_rewards(torch.zeros(3), kl, MASK, 0.5)


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 99.0]])
    values = torch.tensor([[0.5, 1.0, 0.2], [0.5, 0.25, 7.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, gae_lambda=0.5)
    # row 0: delta_2 = 2 - 0.2 = 1.8; delta_1 = 0 + 0.9 * 0.2 - 1 = -0.82; delta_0 = 1 + 0.9 * 1 - 0.5 = 1.4
    #        A_2 = 1.8; A_1 = -0.82 + 0.45 * 1.8 = -0.01; A_0 = 1.4 + 0.45 * -0.01 = 1.3955
    # row 1 ends after two tokens, whatever stands behind: delta_1 = 1 - 0.25 = 0.75,
    #        delta_0 = 0.9 * 0.25 - 0.5 = -0.275, A_0 = -0.275 + 0.45 * 0.75 = 0.0625
    torch.testing.assert_close(advantages, torch.tensor([[1.3955, -0.01, 1.8], [0.0625, 0.75, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.8955, 0.99, 2.0], [0.5625, 1.0, 0.0]]))


def test_gae_at_its_two_ends() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.3, 0.6, 0.9]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # lambda 1 and gamma 1: the return of every state is the final reward
    assert gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)[1].tolist()[0] == pytest.approx([1, 1, 1])
    # lambda 0: one-step differences
    one_step = gae(rewards, values, mask, gamma=1.0, gae_lambda=0.0)[0]
    assert one_step.tolist()[0] == pytest.approx([0.3, 0.3, 0.1])


def test_whitening_is_over_tokens_not_rows() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 1e6]])
    # five tokens: mean 12 / 5 = 2.4 (the mean of the row means would be 2), variance
    # (1.4^2 + 0.4^2 + 6.6^2 + 2 * 2.4^2) / 5 = 57.2 / 5 = 11.44
    scale = math.sqrt(11.44)
    expected = torch.tensor([[-1.4, -0.4, 6.6], [-2.4, -2.4, 0.0]]) / scale
    torch.testing.assert_close(whiten(values, MASK), expected)
    one = torch.tensor([[True, False, False], [False, False, False]])
    assert whiten(values, one).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_policy_loss_by_hand() -> None:
    ratios = torch.tensor([1.5, 0.5, 1.1, 1.5])
    advantages = torch.tensor([1.0, -1.0, 2.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    loss, num_clipped = policy_loss(logprobs, torch.zeros(4), advantages, 0.2)
    # max(-1.5, -1.2) = -1.2 clipped; max(0.5, 0.8) = 0.8 clipped; -2.2 inside; max(1.5, 1.2) = 1.5 not clipped
    assert loss.item() == pytest.approx(-1.2 + 0.8 - 2.2 + 1.5)
    assert num_clipped.item() == 2
    loss.backward()
    # d(-A ratio) / d logprob = -A ratio where the clip is not what counts
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 0, -2.2, 1.5])


def test_dual_clip_by_hand() -> None:
    """With c = 3: a ratio that ran away under a negative advantage costs 3 |A| and pulls no longer."""
    ratios = torch.tensor([5.0, 2.0, 5.0, 0.5, 4.0, 3.5])
    advantages = torch.tensor([-2.0, -2.0, 2.0, -1.0, 0.0, -0.5])
    logprobs = ratios.log().requires_grad_()
    loss, num_clipped = policy_loss(logprobs, torch.zeros(6), advantages, 0.2, 3.0)
    # max(10, 2.4) = 10 bounded to 6; max(4, 2.4) = 4 within; max(-10, -2.4) = -2.4 clipped, never bounded;
    # max(0.5, 0.8) = 0.8 clipped, far below 3; 0; max(1.75, 0.6) = 1.75 bounded to 1.5
    assert loss.item() == pytest.approx(6 + 4 - 2.4 + 0.8 + 0 + 1.5)
    assert num_clipped.item() == 4
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 4.0, 0, 0, 0, 0])
    # a bound that no ratio reaches is no bound
    plain, _ = policy_loss(logprobs, torch.zeros(6), advantages, 0.2)
    assert policy_loss(logprobs, torch.zeros(6), advantages, 0.2, 6.0)[0].item() == plain.item()
    assert plain.item() == pytest.approx(10 + 4 - 2.4 + 0.8 + 0 + 1.75)
    with pytest.raises(ValidationError, match="dual_clip"):
        PPOConfig(dual_clip=1.0)


def test_value_loss_by_hand() -> None:
    values = torch.tensor([2.0, 1.5], requires_grad=True)
    loss, num_clipped = value_loss(values, torch.tensor([1.0, 1.0]), torch.tensor([1.5, 1.6]), 0.2)
    # both clip to 1.2: max(0.25, 0.09) = 0.25; max(0.01, 0.16) = 0.16, where the clip is what counts
    assert loss.item() == pytest.approx(0.5 * (0.25 + 0.16))
    assert num_clipped.item() == 1
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.5, 0.0])  # V - R, and nothing through the clip


def test_kl_estimators() -> None:
    policy, reference = torch.tensor([0.5, 0.2, 0.3]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    # d = ln 2: k3 = 1/2 - 1 + ln 2
    assert k1(policy, reference)[0].item() == pytest.approx(math.log(2))
    assert k3(policy, reference)[0].item() == pytest.approx(-0.5 + math.log(2))
    exact = sum(p * math.log(p / q) for p, q in ((0.5, 0.25), (0.2, 0.25), (0.3, 0.5)))
    for estimator in (k1, k3):  # both are unbiased: their mean under the policy is the divergence
        assert (policy.exp() * estimator(policy, reference)).sum().item() == pytest.approx(exact)
    assert (k3(policy, reference) >= 0).all()
    assert k1(torch.tensor([0.0, -50.0]), torch.tensor([-50.0, 0.0])).tolist() == [20, -20]
    assert torch.isfinite(k3(torch.tensor([-50.0]), torch.tensor([0.0]))).all()


def test_adaptive_kl_by_hand() -> None:
    controller = KLController(PPOConfig(kl_coef=0.1, kl_target=6.0, kl_horizon=2000))
    controller.update(6.6, 100)  # error 0.1: 0.1 * (1 + 0.1 * 100 / 2000)
    assert controller.coef == pytest.approx(0.1005)
    controller.update(60.0, 100)  # error clamped to 0.2
    assert controller.coef == pytest.approx(0.1005 * 1.01)
    controller.update(0.0, 100)  # and to -0.2
    assert controller.coef == pytest.approx(0.1005 * 1.01 * 0.99)
    other = KLController(PPOConfig(kl_target=6.0))
    other.load_state(controller.state())
    assert other.coef == controller.coef
    fixed = KLController(PPOConfig(kl_coef=0.1))
    fixed.update(60.0, 100)
    assert fixed.coef == 0.1


def test_adaptive_kl_never_turns_negative_however_large_the_batch() -> None:
    controller = KLController(PPOConfig(kl_coef=0.1, kl_target=6.0, kl_horizon=100))
    controller.update(0.0, 10_000)
    assert controller.coef == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"dropout": 0.1}}, r"lora\.dropout is 0\.1; ppo needs 0"),
        ({"sampling": {"temperature": 0}}, "needs a distribution"),
        ({"sampling": {"top_k": 5}}, "top_k and top_p must be off"),
        ({"sampling": {"top_p": 0.9}}, "top_k and top_p must be off"),
        ({"num_prompts": 3, "num_minibatches": 4}, r"\(3\) must be at least num_minibatches \(4\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig.model_validate(changes)


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"tale {i}"}) + "\n" for i in range(5)))
    return path


def test_the_stream_is_addressed_by_cursor(load_tiny: Callable[..., Backbone], prompts_file: Path) -> None:
    prompts, dropped = load_prompts(prompts_file, load_tiny().codec, room=4, drop_too_long=False)
    assert dropped == 0
    stream = PromptStream(prompts, seed=3)
    texts = [stream[i].prompt.text for i in range(20)]
    passes = [texts[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(p) == [f"tale {i}" for i in range(5)] for p in passes)  # every prompt once per pass
    assert len({tuple(p) for p in passes}) > 1  # each pass in an order of its own
    fresh = PromptStream(prompts, seed=3)
    assert [fresh[i].prompt.text for i in (17, 3, 12)] == [texts[17], texts[3], texts[12]]
    other = PromptStream(prompts, seed=4)
    assert [other[i].prompt.text for i in range(20)] != texts


def test_prompts_as_text_and_as_conversations(load_tiny: Callable[..., Backbone], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    rows = [{"prompt": "hello"}, {"prompt": messages}, {"messages": messages, "group_id": "g"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    codec = load_tiny(chat_template=True).codec
    prompts, _ = load_prompts(path, codec, room=4, drop_too_long=False)
    assert [p.prompt.text for p in prompts] == ["hello"] * 3
    assert prompts[1].ids == prompts[2].ids
    assert "be kind" in codec.tokenizer.decode(prompts[1].ids)
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: .*no chat template"):
        load_prompts(path, load_tiny().codec, room=4, drop_too_long=False)


def test_too_long_prompts_are_named_or_dropped_and_counted(
    load_tiny: Callable[..., Backbone], prompts_file: Path
) -> None:
    codec = load_tiny().codec
    with open(prompts_file, "a") as file:
        file.write(json.dumps({"prompt": "x" * 500}) + "\n")
    with pytest.raises(DataError, match=r"prompts\.jsonl:6: .*context of 128"):
        load_prompts(prompts_file, codec, room=4, drop_too_long=False)
    prompts, dropped = load_prompts(prompts_file, codec, room=4, drop_too_long=True)
    assert (len(prompts), dropped) == (5, 1)
    with pytest.raises(DataError, match="all 6 prompts are too long"):
        load_prompts(prompts_file, codec, room=128, drop_too_long=True)


def test_only_too_long_prompts_are_dropped(load_tiny: Callable[..., Backbone], prompts_file: Path) -> None:
    """A prompt that the template refuses is a fault of the file, not a long prompt."""
    row = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]}
    with open(prompts_file, "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"prompts\.jsonl:6: .*one user message; found system, user"):
        load_prompts(prompts_file, load_tiny().codec, room=4, drop_too_long=True)
