"""What plain transformers.Trainer gets wrong when a run is cut short (tests/test_trainer_fault_table.py), for sft."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlhf.cli as cli
import sft.methods as methods
from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import MANIFEST, checkpoints, newest_valid
from rlhf.core.errors import GuardStop, Stopped
from rlhf.core.metrics import MetricsLog, read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from sft.config import SFTConfig
from sft.data import load_examples
from sft.train import run
from sft.trainer import SFTTrainer, make_trainer, pass_budget

Options = Callable[..., dict[str, Any]]
ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
WRITTEN_BY_TRL = (
    *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"),
    *("tokenizer.json", "trainer_state.json", "training_args.bin"),
)


def tune(out: Path, config: SFTConfig, **options: bool) -> Path:
    run(config, Launch(workspace=out.parent, db="sqlite://", out=out, **options))
    return out


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """`act` right after the loss of this step is logged."""
    log = MetricsLog.log

    def acting(self: MetricsLog, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == number and "loss" in values:
            act()

    monkeypatch.setattr(MetricsLog, "log", acting)


def crash() -> None:
    raise OSError("the machine went away")


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def settings(options: Options) -> SFTConfig:
    return SFTConfig(**options(eval_steps=2))


def weights_of(out: Path) -> list[bytes]:
    return [
        (out / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "model/model.safetensors")
    ]


@pytest.fixture
def stopped_run(tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 8 steps that crashed in step 7, with checkpoints of steps 4 and 6."""
    with monkeypatch.context() as patch:
        at_step(patch, 7, crash)
        with pytest.raises(OSError, match="went away"):
            tune(tmp_path / "stopped", settings(sft_options))
    names = [folder.name for folder in checkpoints(tmp_path / "stopped" / "checkpoints")]
    assert names == ["step-00000004", "step-00000006"]
    return tmp_path / "stopped"


@pytest.fixture
def whole_run(tmp_path: Path, sft_options: Options) -> Path:
    return tune(tmp_path / "whole", settings(sft_options))


# ---- damaged checkpoints ------------------------------------------------------------------------------------


def damages(original: bytes) -> Iterator[bytes | None]:
    """Bits and bytes changed, cut short at several lengths, one byte too many, and None for no file."""
    size = len(original)
    for place in [0, size // 2, size - 1, *random.Random(0).sample(range(size), min(size, 12))]:
        for mask in (1 << place % 8, 0xFF):
            damaged = bytearray(original)
            damaged[place] ^= mask
            yield bytes(damaged)
    yield from (original[:length] for length in (0, size // 3, size - 1))
    yield original + b"\0"
    yield None


def test_damage_to_any_file_is_found_and_the_older_checkpoint_used(stopped_run: Path) -> None:
    older, newer = checkpoints(stopped_run / "checkpoints")
    names = sorted(path.name for path in newer.iterdir())
    assert {MANIFEST, "state.pt", *WRITTEN_BY_TRL} <= set(names)
    for name in names:
        path = newer / name
        original = path.read_bytes()
        for content in damages(original):
            path.unlink() if content is None else path.write_bytes(content)
            assert newest_valid(newer.parent, warn=lambda text: None) == older, name
        path.write_bytes(original)
        assert newest_valid(newer.parent, warn=pytest.fail) == newer


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_part_of_the_state_costs_two_steps_and_no_bit(
    stopped_run: Path, whole_run: Path, sft_options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = dict.fromkeys(("optimizer.pt", "scheduler.pt", "rng_state.pth"), (Path.unlink, "is missing"))
    cases["adapter_model.safetensors"] = (flip, "does not match its checksum")
    for name, (damage, said) in cases.items():
        out = stopped_run.with_name(f"stopped-{name}")
        shutil.copytree(stopped_run, out)
        damage(checkpoints(out / "checkpoints")[-1] / name)
        capsys.readouterr()
        tune(out, settings(sft_options), resume=True)
        assert re.search(f"step-00000006.*{name}:? {said}", capsys.readouterr().out), name
        assert weights_of(out) == weights_of(whole_run), name
        assert (out / "metrics.jsonl").read_text() == (whole_run / "metrics.jsonl").read_text()


def test_an_incomplete_checkpoint_with_the_highest_number_is_ignored(
    stopped_run: Path, whole_run: Path, sft_options: Options
) -> None:
    """As a kill leaves it inside of trl's save, inside of ours, and in a folder that nobody committed."""
    newer = checkpoints(stopped_run / "checkpoints")[-1]
    for name in (".trl/checkpoint-8", ".partial-00000008", "step-00000099"):
        half = stopped_run / "checkpoints" / name
        half.mkdir(parents=True)
        for part in ("adapter_config.json", "trainer_state.json"):
            shutil.copy(newer / part, half / part)
        (half / "adapter_model.safetensors").write_bytes(b"half")
    tune(stopped_run, settings(sft_options), resume=True)
    assert weights_of(stopped_run) == weights_of(whole_run)
    # the numbered folder is a person's or another program's to remove; the others were ours
    left = sorted(path.name for path in (stopped_run / "checkpoints").iterdir())
    assert left == ["step-00000006", "step-00000008", "step-00000099"]


# ---- what a result may look like ----------------------------------------------------------------------------


def test_a_kill_while_the_model_is_written_leaves_no_half_of_it(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(backbone: Backbone, role: Any, folder: Path, dtype: torch.dtype) -> None:
        (folder / "config.json").write_text("{}")
        os._exit(9)  # as SIGKILL: nothing is cleaned up

    out = tmp_path / "one"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(methods, "save_model", half)
        try:
            tune(out, settings(sft_options))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (out / "model").exists()
    assert not is_finished(out)
    tune(out, settings(sft_options), resume=True)
    assert (out / "model" / "model.safetensors").is_file()
    assert [path.name for path in out.iterdir() if ".building" in path.name] == []


def test_sigterm_ends_the_command_with_143_and_without_a_model(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = SFTConfig(**sft_options(eval_steps=3)), tmp_path / "one"
    (tmp_path / "sft.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = ["sft", "--workspace", str(tmp_path), "--config", str(tmp_path / "sft.yaml"), "--out", str(out)]
    with monkeypatch.context() as patch:
        # After the step's own look for signals: the next step stops, which is none that is validated.
        at_step(patch, 4, ask_to_stop)
        assert cli.main(command) == 143
    assert "stopped by SIGTERM; continue with --resume" in capsys.readouterr().err
    assert not is_finished(out)
    assert not (out / "model").exists()
    assert [folder.name for folder in checkpoints(out / "checkpoints")][-1] == "step-00000005"
    assert cli.main([*command, "--resume"]) == 0
    assert is_finished(out)


# ---- numbers that are not finite ----------------------------------------------------------------------------


def test_nan_ends_the_command_with_3_and_no_checkpoint_holds_it(
    tmp_path: Path, sft_options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first step is finite, its update of size 1e30 is not bearable: the second loss is no number any more.
    config, out = SFTConfig(**sft_options(optim={"lr": 1e30}, eval_steps=100)), tmp_path / "one"
    (tmp_path / "sft.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = ["sft", "--workspace", str(tmp_path), "--config", str(tmp_path / "sft.yaml"), "--out", str(out)]
    assert cli.main(command) == 3
    assert "the run stopped and its last good checkpoint is kept" in capsys.readouterr().err
    assert checkpoints(out / "checkpoints") == []
    assert not (out / "model").exists()
    rows = read_metrics(out / "metrics.jsonl")
    assert 0.0 not in [row["loss"] for row in rows if "loss" in row]


def test_a_stop_saves_no_weights_that_are_not_finite(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the step whose update ruined the weights, before any loss could say so."""

    def ruin(self: Any, *args: Any, **options: Any) -> Any:
        loss = step(self, *args, **options)
        if self.state.global_step == 4 and self.accelerator.sync_gradients:  # the last micro-batch of step 5
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(float("inf"))
            ask_to_stop()
        return loss

    step = SFTTrainer.training_step
    monkeypatch.setattr(SFTTrainer, "training_step", ruin)
    out = tmp_path / "one"
    with pytest.raises(GuardStop, match=r"step 5: .* is (nan|inf)|step 5: a weight is not finite"):
        tune(out, settings(sft_options))
    saved = checkpoints(out / "checkpoints")
    assert [folder.name for folder in saved] == ["step-00000002", "step-00000004"]
    for folder in saved:
        tensors = load_file(folder / "adapter_model.safetensors")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


# ---- memory that runs out -----------------------------------------------------------------------------------


def room_for(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> list[int]:
    """Passes with more rows than that run out of memory; the rows of every pass are recorded."""
    loss, passes = SFTTrainer.compute_loss, []

    def limited(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        passes.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > num_rows:
            raise ON_A_GPU
        return loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(SFTTrainer, "compute_loss", limited)
    return passes


def test_memory_that_runs_out_halves_the_passes_and_keeps_the_batch(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = sft_options(lora={"r": 4, "alpha": 8, "adapter_layers": 1.0})
    whole = tune(tmp_path / "whole", SFTConfig(**options))
    with monkeypatch.context() as patch:
        passes = room_for(patch, 2)
        small = tune(tmp_path / "small", SFTConfig(**options))
    assert 4 in passes  # memory did run out
    assert set(passes[passes.index(4) + 1 :]) <= {1, 2, 3, 4}
    assert capsys.readouterr().out.count("out of memory: the budget of padded tokens per pass is") >= 1
    one, two = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (whole, small))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
    assert read_manifest(small).metrics["num_steps"] == read_manifest(whole).metrics["num_steps"]
    logged = [
        [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
        for out in (whole, small)
    ]
    assert logged[1] == pytest.approx(logged[0], abs=1e-4)


def test_a_pass_begins_again_from_the_gradients_before_it(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second half of the second micro-batch, when its first half has left gradients."""
    config = SFTConfig(**sft_options(lora={"r": 4, "alpha": 8, "adapter_layers": 1.0}))
    assert config.base
    assert config.data
    gradients = []
    for fails in (False, True):
        backbone = Backbone.load(config.base, config.model)
        role = backbone.add_role("policy", config.lora, seed=0)
        examples, _ = load_examples(Path(config.data[0]), backbone.codec, max_tokens=64)
        budget = pass_budget(config, examples)
        trainer = make_trainer(backbone, role, examples, config, tmp_path / "trl", budget)
        batches = list(trainer.get_train_dataloader())[:2]
        calls: list[int] = []
        loss = SFTTrainer.compute_loss

        def compute(
            self: Any, *args: Any, calls: Any = calls, fails: bool = fails, loss: Any = loss, **o: Any
        ) -> Any:
            calls.append(1)
            # the second micro-batch: its only part, then the second of two, then what is left fits
            if fails and len(calls) in (2, 4):
                raise ON_A_GPU
            return loss(self, *args, **o)

        with monkeypatch.context() as patch:
            patch.setattr(SFTTrainer, "compute_loss", compute)
            trainer.create_optimizer()
            total = sum(float(trainer.training_step(trainer.model, dict(batch), 50)) for batch in batches)
        assert len(calls) == 2 if not fails else len(calls) > 6
        gradients.append([p.grad.clone() for p in role.parameters()] + [torch.tensor(total)])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-4)


def test_one_demonstration_that_does_not_fit_stops_with_3_and_one_line(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(
        GuardStop, match=r"out of memory with one row of \d+ tokens .* a smaller max_tokens"
    ) as caught:
        tune(tmp_path / "one", SFTConfig(**sft_options()))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_halved_budget_is_part_of_the_state(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a resumed run cuts its batches as it did, and comes to the same bits."""
    config = settings(sft_options)
    room_for(monkeypatch, 2)
    whole = tune(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        at_step(patch, 5, ask_to_stop)
        with pytest.raises(Stopped):
            tune(tmp_path / "halves", config)
    tune(tmp_path / "halves", config, resume=True)
    assert weights_of(tmp_path / "halves") == weights_of(whole)
