"""The faults found in TRL 1.12's PPOTrainer, row by row, with the tests that ours does not have them.

Most of the tests are in test_ppo_faults.py; here are those about memory, and the table itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]

FAULTS = {
    "num_mini_batches does nothing; the logged ratio is averaged over zeros": [
        "test_num_minibatches_changes_the_number_of_optimizer_steps",
        "test_every_completion_is_in_one_minibatch_of_each_epoch",
        "test_a_metric_averages_only_what_was_written",
    ],
    "no gradient clipping outside DeepSpeed": ["test_gradients_are_clipped_and_the_norm_is_logged"],
    "gradient_checkpointing is inert": [
        "test_gradient_checkpointing_recomputes_and_changes_nothing",
        "test_gradient_checkpointing_saves_memory_in_every_trained_role",
    ],
    "three full backbones even with adapters": ["test_the_backbone_exists_once_for_all_roles"],
    "generation keeps scores of batch x time x vocabulary": ["test_no_tensor_of_batch_by_time_by_vocabulary"],
    "a softmax over the vocabulary only to log the entropy": [
        "test_entropy_comes_from_the_same_pass_and_is_right"
    ],
    "empty_cache in inner loops": ["test_no_cache_is_emptied_in_an_iteration"],
    "old logprobs from the sampler, never checked": [
        "test_the_ratio_is_one_on_the_first_pass",
        "test_a_policy_that_changed_since_the_rollout_stops_the_run",
    ],
    "eval_steps is ignored": [
        "test_the_best_evaluated_policy_is_kept",
        "test_the_best_policy_is_that_of_the_named_metric",
    ],
    "the penalty tests eos_token_id, not the stop token; pad == eos breaks the length": [
        "test_pad_equal_to_eos_changes_no_mask",
        "test_the_missing_end_penalty_hits_exactly_those_without_an_end",
    ],
    "advantages are whitened per process": [
        "test_advantages_are_whitened_over_all_tokens_of_the_rollout",
        "test_two_processes_end_where_one_does",
    ],
    "no resume, and the critic is not saved": [
        "test_stopped_in_a_rollout_and_resumed_equals_never_stopped",
        "test_stopped_in_an_update_and_resumed_equals_never_stopped",
        "test_a_crash_loses_at_most_one_save_interval",
        "test_two_kills_and_a_stop_lose_nothing",
    ],
    "tokenised input only": ["test_prompts_as_text_and_as_conversations"],
    "no callable reward, no reward model with another tokenizer": [
        "test_a_function_is_asked_once_about_the_whole_rollout",
        "test_a_reward_on_another_backbone_reads_the_text_in_its_own_tokens",
    ],
    "no adaptive KL, target-KL stop, entropy bonus or reward normalisation": [
        "test_adaptive_kl_by_hand",
        "test_target_kl_ends_the_passes_of_an_iteration",
        "test_an_entropy_bonus_raises_entropy",
        "test_scores_are_normalised_and_clipped",
        "test_running_figures_are_those_of_all_completions",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_tests(fault: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert FAULTS[fault]
    assert set(FAULTS[fault]) <= defined


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator held at once above what it held before, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("value_adapter", [False, True])
def test_gradient_checkpointing_saves_memory_in_every_trained_role(
    make_trainer: MakeTrainer, value_adapter: bool
) -> None:
    """Eight adapted layers in one micro-batch: without it all activations are held, with it those of one layer."""
    peaks = []
    for gradient_checkpointing in (False, True):
        trainer, stream = make_trainer(
            {"num_layers": 8},
            gradient_checkpointing=gradient_checkpointing,
            value_adapter=value_adapter,
            lora={"r": 2, "alpha": 4, "adapter_layers": 1.0},
            num_prompts=24,
            num_minibatches=1,
            num_epochs=1,
            sampling={"max_completion_tokens": 24},
        )
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        peaks.append(peak_bytes(lambda t=trainer, b=batch, g=targets: t.update(b, g)))  # type: ignore[misc]
    assert peaks[1] < 0.5 * peaks[0]


def test_no_cache_is_emptied_in_an_iteration(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[str] = []
    for name in ("cuda", "mps", "xpu", "accelerator"):
        module = getattr(torch, name)
        if hasattr(module, "empty_cache"):
            monkeypatch.setattr(module, "empty_cache", lambda name=name: emptied.append(name))
    trainer, stream = make_trainer(micro_batch_tokens=32)
    batch = trainer.collect(stream)
    trainer.update(batch, trainer.targets(batch))
    trainer.finish_iteration(0.0, len(batch.texts))
    assert emptied == []
    torch.cuda.empty_cache()
    assert emptied == ["cuda"]  # a call would have been seen


def test_target_kl_ends_the_passes_of_an_iteration(make_trainer: MakeTrainer) -> None:
    """At once when new and old policy are far apart, not at all when the limit is never met."""
    steps = []
    for target_kl in (1e-6, 1e6):
        trainer, stream = make_trainer(target_kl=target_kl, num_epochs=4, optim={"lr": 1e-2})
        batch = trainer.collect(stream)
        stats = trainer.update(batch, trainer.targets(batch))
        steps.append((stats.num_steps, stats.stopped_early))
    # the first step is measured before it moves anything, the second sees what the first one did
    assert steps == [(2, True), (8, False)]
