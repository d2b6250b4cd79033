"""The sampler's own numbers stand for a recomputation where they agree with one, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.core import sampler
from rlhf.ppo.measure import POLICY, VALUE, measure
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.rollout import RolloutBatch
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]


def trained(make_trainer: MakeTrainer, **options: Any) -> tuple[PPOTrainer, PromptStream]:
    """A policy and a value head that are not those of the start, whose values are all 0."""
    trainer, stream = make_trainer(**options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainer, stream


def expected(trainer: PPOTrainer, batch: RolloutBatch) -> dict[str, torch.Tensor]:
    """Row by row from the tokens, with the whole decoder and nothing of the code in question."""
    backbone, rows = trainer.backbone, batch.completions.sequences.rows
    value = VALUE if VALUE in backbone.roles else POLICY
    head = backbone.roles[value].head
    assert head is not None
    found = {name: torch.zeros_like(batch.old_logprobs_BT) for name in ("old", "ref", "values")}
    for i, row in enumerate(rows):
        count, tokens = int(batch.completions.lengths_B[i]), torch.tensor([list(row)])
        places = slice(len(row) - count - 1, -1)
        with torch.no_grad():
            for name, role in (("old", POLICY), ("ref", "reference")):
                logits = backbone.logits(backbone.hidden(role, tokens)[0, places])
                logprobs = (logits / trainer.config.sampling.temperature).log_softmax(-1)
                found[name][i, :count] = logprobs.gather(1, tokens[0, -count:, None])[:, 0]
            found["values"][i, :count] = head(backbone.hidden(value, tokens)[0, places])[:, 0]
    return found


def assert_measured(trainer: PPOTrainer, batch: RolloutBatch, atol: float = 1e-4) -> None:
    wanted = expected(trainer, batch)
    for name, found in (
        ("old", batch.old_logprobs_BT),
        ("ref", batch.ref_logprobs_BT),
        ("values", batch.values_BT),
    ):
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=atol)
    assert (wanted["old"] - wanted["ref"]).abs().max() > 0.05
    assert wanted["values"].abs().max() > 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("old_logprobs", ["auto", "sampler", "recompute"])
def test_wherever_they_come_from_they_are_those_of_the_tokens(
    make_trainer: MakeTrainer, old_logprobs: str, temperature: float
) -> None:
    sampling = {"max_completion_tokens": 8, "temperature": temperature}
    trainer, stream = trained(make_trainer, old_logprobs=old_logprobs, sampling=sampling)
    batch = trainer.collect(stream)
    assert_measured(trainer, batch)
    assert batch.recomputed == (old_logprobs == "recompute")
    assert batch.sampler_gap < 1e-4
    sampled = torch.equal(batch.old_logprobs_BT, batch.completions.sampled_logprobs_BT)
    assert sampled == (old_logprobs != "recompute")
    if sampled:
        assert torch.equal(batch.values_BT, batch.completions.readings_BT)
    assert trainer.update(batch, trainer.targets(batch)).first_ratio_error < 1e-4


def test_the_samplers_numbers_save_the_policys_pass(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 rows two are computed again to check the sampler, and the reference is measured for all."""
    trainer, stream = trained(make_trainer, num_prompts=6, samples_per_prompt=4, micro_batch_tokens=4096)
    rows: dict[str, int] = {}
    hidden = trainer.backbone.hidden

    def counted(role: str, tokens_BS: torch.Tensor, *args: Any) -> torch.Tensor:
        rows[role] = rows.get(role, 0) + len(tokens_BS)
        return hidden(role, tokens_BS, *args)

    monkeypatch.setattr(trainer.backbone, "hidden", counted)
    trunk_rows: list[int] = []
    trunk = trainer.backbone.trunk
    monkeypatch.setattr(trainer.backbone, "trunk", lambda t: trunk_rows.append(len(t)) or trunk(t))
    assert not trainer.collect(stream).recomputed
    assert rows == {"policy": 2, "reference": 24}
    assert sum(trunk_rows) == 2


def spoil_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = sampler.choose

    def off(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        tokens_B, logprobs_B = choose(*args)
        return tokens_B, logprobs_B - 0.01

    monkeypatch.setattr(sampler, "choose", off)


def spoil_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are captured one place too late: everything else that the sampler says is right."""
    keep = sampler._Decoding._keep
    monkeypatch.setattr(sampler._Decoding, "_keep", lambda self, rows, column: keep(self, rows, column - 1))


def spoil_states_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = sampler._Decoding._capture

    def broken(self: Any, module: Any, inputs: Any, output: Any) -> None:
        capture(self, module, inputs, output)
        self._captured = self._captured * float("nan")

    monkeypatch.setattr(sampler._Decoding, "_capture", broken)


def lose_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    init = sampler._Decoding.__init__
    monkeypatch.setattr(
        sampler._Decoding, "__init__", lambda self, *args, **k: init(self, *args, **k | {"read": None})
    )


@pytest.mark.parametrize(
    ("spoil", "gap"),
    [(spoil_logprobs, 0.01), (spoil_states, 0.0), (spoil_states_with_nan, 0.0), (lose_readings, 0.0)],
)
@pytest.mark.parametrize("old_logprobs", ["auto", "sampler"])
def test_what_does_not_agree_is_computed_again_and_said(
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    old_logprobs: str,
    spoil: Callable[[pytest.MonkeyPatch], None],
    gap: float,
) -> None:
    spoil(monkeypatch)
    trainer, stream = trained(make_trainer, old_logprobs=old_logprobs)
    batch = trainer.collect(stream)
    assert batch.recomputed
    assert batch.sampler_gap == pytest.approx(gap, abs=1e-4)
    assert_measured(trainer, batch)
    assert trainer.update(batch, trainer.targets(batch)).first_ratio_error < 1e-4


@pytest.mark.parametrize("old_logprobs", ["auto", "recompute"])
def test_values_of_an_adapter_of_their_own_are_always_computed(
    make_trainer: MakeTrainer, old_logprobs: str
) -> None:
    trainer, stream = trained(make_trainer, value_adapter=True, old_logprobs=old_logprobs)
    batch = trainer.collect(stream)
    assert_measured(trainer, batch)
    assert batch.recomputed == (old_logprobs == "recompute")
    assert batch.completions.readings_BT.numel() == 0


def test_rows_of_other_processes_stay_zero_and_own_ones_are_right(make_trainer: MakeTrainer) -> None:
    trainer, stream = trained(make_trainer)
    whole = trainer.collect(stream)
    drawn, requests = [], []
    for i, row in enumerate(whole.completions.sequences.rows):
        count = int(whole.completions.lengths_B[i])
        logprobs = whole.completions.sampled_logprobs_BT[i, :count].tolist()
        readings = whole.completions.readings_BT[i, :count].tolist()
        requests.append(sampler.Request(list(row[:-count]), i))
        drawn.append(sampler.Sampled(list(row[-count:]), logprobs, False, None, readings))
    own = range(2, 5)
    states = [whole.completions.sequences._states[i] for i in own]  # type: ignore[index]
    part = measure(trainer.backbone, requests, drawn, trainer.config, 4096, own=own, states=states)
    assert not part.recomputed
    for found, expected_BT in (
        (part.old_logprobs_BT, whole.old_logprobs_BT),
        (part.ref_logprobs_BT, whole.ref_logprobs_BT),
        (part.values_BT, whole.values_BT),
    ):
        torch.testing.assert_close(found[2:5], expected_BT[2:5], rtol=0, atol=1e-4)
        assert found[:2].abs().max() == 0
        assert found[5:].abs().max() == 0


@pytest.mark.parametrize("value_adapter", [False, True])
def test_an_iteration_with_the_reference_engine(make_trainer: MakeTrainer, value_adapter: bool) -> None:
    """The same completions, everything measured from the tokens, and the same weights afterwards."""
    ended = []
    for engine in ("native", "transformers"):
        sampling = {"max_completion_tokens": 8, "engine": engine}
        trainer, stream = trained(make_trainer, sampling=sampling, value_adapter=value_adapter)
        batch = trainer.collect(stream)
        assert batch.recomputed == (engine == "transformers")
        assert batch.sampler_gap < 1e-4
        assert_measured(trainer, batch)
        trainer.update(batch, trainer.targets(batch))
        ended.append((batch.texts, [p.detach() for p in trainer.parameters]))
    assert ended[0][0] == ended[1][0]
    for one, two in zip(ended[0][1], ended[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
