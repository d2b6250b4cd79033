"""The faults of TRL 1.12's PPOTrainer, each as a test that ours does not have it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.core.errors import GuardStop
from rlhf.core.logprobs import token_logprobs
from rlhf.ppo.measure import values_of
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.scores import ScoreNormalizer, ScoreScale, shaped_scores
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]
# Gradients of all but the first step move the weights; a rate of nearly 0 keeps every pass at ratio 1.
STILL = {"lr": 1e-12}


def one_iteration(trainer: PPOTrainer, stream: PromptStream) -> tuple[Any, Any, Any]:
    batch = trainer.collect(stream)
    targets = trainer.targets(batch)
    return batch, targets, trainer.update(batch, targets)


def record_steps(trainer: PPOTrainer) -> list[list[torch.Tensor]]:
    """The gradients that each optimizer step is given."""
    steps: list[list[torch.Tensor]] = []

    def note(*_: Any) -> None:
        steps.append([p.grad.clone() for p in trainer.parameters if p.grad is not None])

    trainer.optimizer.register_step_pre_hook(note)
    return steps


def weights(trainer: PPOTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.parameters]


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 1), (1, 4), (3, 2)])
def test_num_minibatches_changes_the_number_of_optimizer_steps(
    make_trainer: MakeTrainer, num_epochs: int, num_minibatches: int
) -> None:
    trainer, stream = make_trainer(num_epochs=num_epochs, num_minibatches=num_minibatches)
    steps = record_steps(trainer)
    _, _, stats = one_iteration(trainer, stream)
    assert len(steps) == stats.num_steps == num_epochs * num_minibatches
    assert stats.means()["num_optimizer_steps"] == num_epochs * num_minibatches


@pytest.mark.parametrize("micro_batch_tokens", [16, 10_000])
def test_every_completion_is_in_one_minibatch_of_each_epoch(
    make_trainer: MakeTrainer, micro_batch_tokens: int
) -> None:
    trainer, stream = make_trainer(
        num_epochs=3, num_minibatches=4, micro_batch_tokens=micro_batch_tokens, optim=STILL
    )
    batch, _, stats = one_iteration(trainer, stream)
    assert stats.num_tokens == 3 * int(batch.completions.lengths_B.sum())


def test_a_metric_averages_only_what_was_written(make_trainer: MakeTrainer) -> None:
    """TRL averaged the ratio over zeros. Ours stops early here, and the mean is still over what happened."""
    trainer, stream = make_trainer(num_epochs=4, num_minibatches=2, optim=STILL)
    _, _, stats = one_iteration(trainer, stream)
    assert stats.means()["ratio"] == pytest.approx(1.0, abs=1e-5)
    trainer, stream = make_trainer(num_epochs=4, num_minibatches=2, target_kl=1e-9, optim={"lr": 1e-3})
    batch, _, stats = one_iteration(trainer, stream)
    # the first step sees no divergence, the second one does and ends the iteration: one epoch's tokens
    assert stats.stopped_early
    assert stats.num_steps == 2
    assert stats.num_tokens == int(batch.completions.lengths_B.sum())
    assert stats.means()["ratio"] == pytest.approx(1.0, abs=0.2)


def test_gradients_are_clipped_and_the_norm_is_logged(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer(optim={"lr": 1e-3, "max_grad_norm": 1e-3})
    steps = record_steps(trainer)
    _, _, stats = one_iteration(trainer, stream)
    for grads in steps:
        norm = torch.stack([g.norm() for g in grads]).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-3)
    assert len(stats.grad_norms) == len(steps)
    assert all(norm > 1e-3 for norm in stats.grad_norms)
    assert stats.means()["grad_norm"] == pytest.approx(sum(stats.grad_norms) / len(stats.grad_norms))


def test_gradient_checkpointing_recomputes_and_changes_nothing(make_trainer: MakeTrainer) -> None:
    results, calls = [], []
    for gradient_checkpointing in (False, True):
        trainer, stream = make_trainer(gradient_checkpointing=gradient_checkpointing, value_adapter=True)
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        count = [0]
        for role in trainer.roles:
            layer = role.causal_lm.get_decoder().layers[3].self_attn
            layer.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        trainer.update(batch, targets)
        results.append(weights(trainer))
        calls.append(count[0])
    assert calls[1] == 2 * calls[0] > 0
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-5)


def test_the_backbone_exists_once_for_all_roles(make_trainer: MakeTrainer) -> None:
    trainer, _ = make_trainer(value_adapter=True)
    roles = trainer.backbone.roles.values()
    held = {p.data_ptr(): p.numel() for role in roles for p in role.causal_lm.parameters()}
    base = sum(p.numel() for p in trainer.backbone.model.parameters())
    adapters = sum(p.numel() for role in roles for p in role.model.parameters() if p.requires_grad)
    assert set(trainer.backbone.roles) == {"reference", "policy", "value"}
    assert sum(held.values()) == base + adapters


class LargestLogits(TorchDispatchMode):
    """The largest number of rows of any tensor whose last axis is the vocabulary, the output matrix apart."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.vocab_size, self.rows, self._output = output.shape[0], 0, output.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(tensor, torch.Tensor) or tensor.shape[-1:] != (self.vocab_size,):
                continue
            if tensor.untyped_storage().data_ptr() != self._output:
                self.rows = max(self.rows, tensor.numel() // self.vocab_size)
        return result


def test_no_tensor_of_batch_by_time_by_vocabulary(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rollout and update no more rows of logits exist at once than one chunk, or one token per sequence."""
    trainer, stream = make_trainer()
    vocab_size = trainer.backbone.vocab_size
    monkeypatch.setitem(token_logprobs.__kwdefaults__, "max_chunk_logits", 7 * vocab_size)
    with LargestLogits(trainer.backbone.model.get_output_embeddings().weight) as largest:
        batch, _, _ = one_iteration(trainer, stream)
    assert int(batch.completions.lengths_B.sum()) > 20
    assert largest.rows == 7  # 6 sequences are sampled at once


def test_entropy_comes_from_the_same_pass_and_is_right(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer(optim=STILL)
    batch, _, stats = one_iteration(trainer, stream)
    total, count = 0.0, 0
    for prompt, tokens in rows_of(batch):
        row = torch.tensor([[*prompt, *tokens]])
        logits = trainer.backbone.logits(trainer.backbone.hidden("policy", row))[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        total -= (logprobs.exp() * logprobs).sum().item()
        count += len(tokens)
    assert stats.means()["entropy"] == pytest.approx(total / count, abs=1e-4)


def rows_of(batch: Any) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of each row."""
    completions = batch.completions
    cuts = completions.prompt_lengths_B.tolist()
    return [
        (list(row[:cut]), list(row[cut:])) for row, cut in zip(completions.sequences.rows, cuts, strict=True)
    ]


@pytest.mark.parametrize("micro_batch_tokens", [16, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_on_the_first_pass(
    make_trainer: MakeTrainer, temperature: float, micro_batch_tokens: int
) -> None:
    """Old logprobs are recomputed by the code that the update uses, and agree with the sampler's."""
    sampling = {"max_completion_tokens": 8, "temperature": temperature}
    trainer, stream = make_trainer(sampling=sampling, micro_batch_tokens=micro_batch_tokens)
    one_iteration(trainer, stream)
    trainer.finish_iteration(0.0, 6)
    batch, _, stats = one_iteration(trainer, stream)  # a second rollout: the policy is no longer the base
    assert not torch.allclose(batch.old_logprobs_BT, batch.ref_logprobs_BT, atol=1e-3)
    assert stats.first_ratio_error < 1e-5
    assert batch.sampler_gap < 1e-4


def test_a_policy_that_changed_since_the_rollout_stops_the_run(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer()
    batch = trainer.collect(stream)
    targets = trainer.targets(batch)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.1)
    with pytest.raises(GuardStop, match="the policy changed between rollout and update"):
        trainer.update(batch, targets)


@pytest.mark.parametrize("chat_template", [False, True])
def test_pad_equal_to_eos_changes_no_mask(make_trainer: MakeTrainer, chat_template: bool) -> None:
    """Lengths come from the sampler. TRL compared tokens with the pad id, which cut rows at their end token."""
    model = {"pad_is_eos": True, "chat_template": chat_template}
    # at temperature 3 the tiny model meets its end token soon
    sampling = {"max_completion_tokens": 40, "temperature": 3.0}
    trainer, stream = make_trainer(model, sampling=sampling, num_prompts=12, samples_per_prompt=4)
    batch, targets, _ = one_iteration(trainer, stream)
    ends = trainer.backbone.codec.end_token_ids
    assert 0 < int(batch.completions.finished_B.sum()) < 48
    masks = batch.completions.mask_BT
    rows = zip(rows_of(batch), masks, batch.completions.finished_B.tolist(), strict=True)
    for number, ((_, tokens), mask_T, finished) in enumerate(rows):
        assert mask_T.tolist() == [True] * len(tokens) + [False] * (len(mask_T) - len(tokens))
        assert finished == (tokens[-1] in ends)
        assert not set(tokens[:-1]) & set(ends)
        # the end token's own log-probability is measured and gets the score
        assert batch.old_logprobs_BT[number, len(tokens) - 1] != 0
        last = targets.rewards_BT[number, len(tokens) - 1] + 0.1 * targets.kl_BT[number, len(tokens) - 1]
        assert last.item() == pytest.approx(batch.scores_B[number].item(), abs=1e-5)


def test_the_missing_end_penalty_hits_exactly_those_without_an_end(make_trainer: MakeTrainer) -> None:
    sampling = {"max_completion_tokens": 40, "temperature": 3.0}
    trainer, stream = make_trainer(sampling=sampling, missing_end_penalty=2.5, num_prompts=24)
    batch = trainer.collect(stream)
    shaped_B = shaped_scores(batch.scores_B, batch.completions, ScoreScale(), trainer.config)
    taken = batch.scores_B - shaped_B
    assert 0 < int(batch.completions.finished_B.sum()) < 24
    torch.testing.assert_close(taken, 2.5 * (~batch.completions.finished_B).float())


def test_scores_are_normalised_and_clipped(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer(score_normalization="saved", score_clip=1.5)
    batch = trainer.collect(stream)
    trainer.reward.mean, trainer.reward.std = 0.25, 0.1
    scale = ScoreNormalizer(trainer.reward, trainer.config).scale
    expected = [max(-1.5, min(1.5, (s - 0.25) / 0.1)) for s in batch.scores_B.tolist()]
    found = shaped_scores(batch.scores_B, batch.completions, scale, trainer.config).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert 1.5 in [abs(s) for s in found]


def test_advantages_are_whitened_over_all_tokens_of_the_rollout(make_trainer: MakeTrainer) -> None:
    sampling = {"max_completion_tokens": 12, "temperature": 3.0}
    trainer, stream = make_trainer(sampling=sampling, num_prompts=12, micro_batch_tokens=32)
    batch = trainer.collect(stream)
    mask_BT = batch.completions.mask_BT
    values = trainer.targets(batch).advantages_BT[mask_BT]
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.var(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert not trainer.targets(batch).advantages_BT[~mask_BT].any()


def test_micro_batches_change_no_gradient(make_trainer: MakeTrainer) -> None:
    """1 row at a time equals all rows at once: the loss is divided by the minibatch's token count once."""
    found = []
    for micro_batch_tokens in (1, 40, 10_000):
        trainer, stream = make_trainer(
            num_minibatches=1,
            num_epochs=1,
            entropy_coef=0.1,
            micro_batch_tokens=micro_batch_tokens,
            num_prompts=12,
            sampling={"max_completion_tokens": 40, "temperature": 3.0},
            optim={"lr": 1e-3, "max_grad_norm": 1e9},
        )
        steps = record_steps(trainer)
        batch, _, stats = one_iteration(trainer, stream)
        assert len(set(batch.completions.lengths_B.tolist())) > 1
        found.append((steps[0], stats.means()))
    for (grads, means), (other_grads, other_means) in itertools.pairwise(found):
        assert means == pytest.approx(other_means, abs=1e-4)
        assert max(g.abs().max().item() for g in grads) > 1e-3
        for one, two in zip(grads, other_grads, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value_adapter", [False, True])
def test_the_trunk_cache_changes_no_result(make_trainer: MakeTrainer, value_adapter: bool) -> None:
    results = []
    for trunk_cache in (True, False):
        trainer, stream = make_trainer(trunk_cache=trunk_cache, value_adapter=value_adapter)
        assert trainer.backbone.trunk_enabled == trunk_cache
        for _ in range(2):
            batch, _, stats = one_iteration(trainer, stream)
            trainer.finish_iteration(0.0, 6)
        results.append((weights(trainer), batch.texts, stats.means()))
    assert results[0][1] == results[1][1]
    for cached, whole in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5)


def test_a_value_adapter_learns_values_and_leaves_the_policy_to_the_policy_loss(
    make_trainer: MakeTrainer,
) -> None:
    trainer, stream = make_trainer(
        value_adapter=True, kl_coef=0.0, num_epochs=8, gae_lambda=1.0, optim={"lr": 1e-3}
    )
    batch, targets, _ = one_iteration(trainer, stream)
    assert trainer.backbone.roles["policy"].head is None
    returns = targets.returns_BT[batch.completions.mask_BT]
    before = batch.values_BT[batch.completions.mask_BT] - returns
    with torch.no_grad():
        micro = batch.completions.batch(range(6))
        hidden_NH = batch.completions.hidden("value", micro)
        after = values_of(trainer.backbone, batch.completions, micro, hidden_NH) - returns
    assert after.square().mean() < 0.7 * before.square().mean()
    # With only a value loss the policy's adapter gets no gradient at all.
    trainer, stream = make_trainer(value_adapter=True, clip_range=1e-9)
    batch = trainer.collect(stream)
    targets = trainer.targets(batch)
    targets.advantages_BT.zero_()
    adapter = [p.detach().clone() for p in trainer.backbone.roles["policy"].parameters()]
    trainer.update(batch, targets)
    for old, new in zip(adapter, trainer.backbone.roles["policy"].parameters(), strict=True):
        assert torch.equal(old, new)


def test_an_entropy_bonus_raises_entropy(make_trainer: MakeTrainer) -> None:
    entropies = []
    for entropy_coef in (0.0, 10.0):
        sampling = {"max_completion_tokens": 8, "temperature": 0.5}
        trainer, stream = make_trainer(entropy_coef=entropy_coef, num_epochs=4, sampling=sampling)
        for _ in range(3):
            _, _, stats = one_iteration(trainer, stream)
            trainer.finish_iteration(0.0, 6)
        entropies.append(stats.means()["entropy"])
    assert entropies[1] > entropies[0] + 0.05


def test_several_samples_of_a_prompt_differ_and_each_is_scored(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer(samples_per_prompt=3)
    batch = trainer.collect(stream)
    assert len(batch.texts) == trainer.reward.asked == 18
    assert [p.text for p in batch.prompts[::3]] == [stream[i].prompt.text for i in range(6)]
    assert batch.prompts[0] == batch.prompts[2] != batch.prompts[3]
    assert len({tuple(tokens) for _, tokens in rows_of(batch)}) == 18


def test_a_nan_in_a_weight_stops_the_iteration(make_trainer: MakeTrainer) -> None:
    trainer, stream = make_trainer()
    with torch.no_grad():
        trainer.parameters[-1].fill_(float("nan"))
    with pytest.raises(GuardStop, match="a weight is not finite"):
        trainer.finish_iteration(0.0, 6)
    batch = trainer.collect(stream)
    with pytest.raises(GuardStop, match="grad_norm is nan"):
        trainer.update(batch, trainer.targets(batch))
