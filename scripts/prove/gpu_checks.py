"""Does everything that PPO does on a GPU give there what it gives on the CPU, and how fast does it decode?

    python scripts/prove/gpu_checks.py [--shape qwen2.5-0.5b]

Small random models of Llama's and Qwen2's kind, in fp32 and bf16: the decoding step by a CUDA graph is taken and draws
what the model's own forward draws, with rows that end on the way; hidden states of the forwards in fewer passes and
of the trunk split; three iterations of PPO beside the same three on the CPU. Then tokens a second of the large shape
with the graph, without it and by transformers' generate. Ends with 1 where something differs, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench.cases import END, SHAPES
from bench.model import write_model
from bench.ours import InOrder, encoded

from rlhf.core import sampler, static_step
from rlhf.core.backbone import Backbone
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings
from rlhf.ppo.closed_form import TokenReward
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.train import PPOTrainer

SMALL = ["tiny", "tiny-qwen2"]
PROMPTS = [[4 + (7 * i + j) % 50 for j in range(3 + 5 * (i % 3))] for i in range(24)]


def load(folder: Path, dtype: str, device: str) -> Backbone:
    return Backbone.load(str(folder), ModelSettings(dtype=dtype, device=device), name="check")  # type: ignore[arg-type]


def moved(backbone: Backbone) -> None:
    """A policy whose adapter does something, with the trunk below its upper half."""
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=8, adapter_layers=0.5), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@contextmanager
def own_forward() -> Iterator[None]:
    """The sampler without a step of its own."""
    with mock.patch.object(sampler, "static_step", return_value=None):
        yield


def draw(backbone: Backbone, **options: Any) -> list[Sampled]:
    """24 completions of up to 40 tokens; several tokens end one, so that rows leave at every size of the batch."""
    settings = SamplingSettings(max_completion_tokens=40, **options)
    requests = [Request(prompt, i) for i, prompt in enumerate(PROMPTS)]
    ends, layer = [END, 40, 41, 42], backbone.first_top_layer
    return sample(
        backbone.sampling_model("policy"), requests, settings, end_token_ids=ends, seed=0, capture_layer=layer
    )


def agreement(found: list[Sampled], expected: list[Sampled]) -> tuple[float, float]:
    """(share of equal rows, largest difference of a log-probability in those)."""
    pairs = list(zip(found, expected, strict=True))
    equal = [(a, b) for a, b in pairs if a.tokens == b.tokens and a.finished == b.finished]
    gaps = [abs(x - y) for a, b in equal for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    return len(equal) / len(pairs), max(gaps, default=float("inf"))


def check_sampling(folder: Path, dtype: str) -> str:
    backbone = load(folder, dtype, "cuda")
    moved(backbone)
    note = backbone.enable_trunk(64)
    assert backbone.trunk_enabled, note
    model = backbone.sampling_model("policy")
    step = static_step.static_step(model)
    assert step is not None, "the graph is not taken"
    graphed = draw(backbone)
    with own_forward():
        own = draw(backbone)
    share, gap = agreement(graphed, own)
    lengths = sorted({len(row.tokens) for row in own})
    trunk = max(
        (a.trunk_SH.float() - b.trunk_SH.float()).abs().max().item()  # type: ignore[union-attr]
        for a, b in zip(graphed, own, strict=True)
        if a.tokens == b.tokens
    )
    greedy, _ = agreement(
        draw(backbone, temperature=0.0), draw(backbone, temperature=0.0, engine="transformers")
    )
    text = (
        f"rows equal {share:.2f}, log-probability gap {gap:.1e}, trunk gap {trunk:.1e}, greedy as transformers "
        f"{greedy:.2f}, {len(lengths)} lengths"
    )
    exact = dtype == "float32"
    assert share >= (1.0 if exact else 0.7), text
    assert gap <= (1e-3 if exact else 0.2), text
    assert greedy >= (1.0 if exact else 0.7), text
    return text


def check_forwards(folder: Path, dtype: str) -> str:
    """Hidden states on the GPU against fp32 on the CPU, through the trunk and without it."""
    tokens_BS = torch.arange(8, 40).reshape(2, 16) % 60
    there, here = load(folder, dtype, "cuda"), load(folder, "float32", "cpu")
    found = []
    for backbone in (there, here):
        moved(backbone)
        backbone.enable_trunk(16)
        tokens = tokens_BS.to(backbone.device)
        with torch.no_grad():
            hidden = (
                backbone.hidden("policy", tokens),
                backbone.hidden("policy", tokens, backbone.trunk(tokens)),
            )
        found.append([h.float().cpu() for h in hidden])
    scale = found[1][0].abs().max().item()
    gap = max((a - b).abs().max().item() for a, b in zip(*found, strict=True)) / scale
    changed = sum("forward" in m.__dict__ for m in there.roles["policy"].model.modules())
    text = f"largest difference {gap:.1e} of the largest state, {changed} forwards in fewer passes"
    assert gap <= (1e-4 if dtype == "float32" else 0.1), text
    assert changed > 8, text
    return text


def trained(folder: Path, dtype: str, device: str, **options: Any) -> tuple[dict[str, float], torch.Tensor]:
    """Figures and all weights after three iterations."""
    backbone = load(folder, dtype, device)
    config = PPOConfig(
        num_iterations=3,
        num_prompts=16,
        micro_batch_tokens=200,
        sampling=SamplingSettings(max_completion_tokens=16),
        lora=LoraSettings(r=4, alpha=8, adapter_layers=0.5),
        optim=OptimSettings(lr=1e-3),
        score_normalization="none",
        **options,
    )
    reward = TokenReward(lambda tokens: sum(t > 30 for t in tokens) / max(1, len(tokens)), 12)
    trainer = PPOTrainer(backbone, reward, config, max_tokens=32)
    stream = InOrder(encoded([[4 + (i + j) % 50 for j in range(12)] for i in range(64)]), 0)
    figures: dict[str, float] = {}
    for _ in range(3):
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        stats = trainer.update(batch, targets)
        figures = trainer.figures(batch, targets, stats, {"rollout": 1.0, "update": 1.0})
        trainer.finish_iteration(figures["kl"], 16)
    trainer.load_state_dict(trainer.state_dict())
    return figures, torch.cat([p.detach().float().cpu().flatten() for p in trainer.parameters])


def check_ppo(folder: Path, dtype: str, **options: Any) -> str:
    figures, weights = trained(folder, dtype, "cuda", **options)
    text = (
        f"score {figures['score']:.3f}, ratio error {figures['first_ratio_error']:.1e}, sampler gap "
        f"{figures['sampler_gap']:.1e}, recomputed {figures['recomputed']:.0f}"
    )
    assert figures["first_ratio_error"] <= (1e-3 if dtype == "float32" else 0.1), text
    if dtype == "float32":
        _, expected = trained(folder, dtype, "cpu", **options)
        gap = ((weights - expected).norm() / expected.norm()).item()
        text += f", weights differ from the CPU's by {gap:.1e}"
        assert gap <= 1e-2, text
    return text


def decoding_speed(folder: Path, rows: int, prompt: int, completion: int) -> str:
    """Tokens a second of a bf16 policy with adapters everywhere, after one rollout of warm-up."""
    backbone = load(folder, "bfloat16", "cuda")
    backbone.add_role("policy", LoraSettings(r=16, alpha=32), seed=0)
    requests = [Request([4 + (31 * i + j) % 1000 for j in range(prompt)], i) for i in range(rows)]

    def timed(settings: SamplingSettings) -> float:
        model = backbone.sampling_model("policy")
        sample(model, requests, settings, end_token_ids=[], seed=0)
        torch.cuda.synchronize()
        started = time.perf_counter()
        sample(backbone.sampling_model("policy"), requests, settings, end_token_ids=[], seed=0)
        torch.cuda.synchronize()
        return rows * completion / (time.perf_counter() - started)

    settings = SamplingSettings(max_completion_tokens=completion)
    graph = timed(settings)
    with own_forward():
        own = timed(settings)
    peer = timed(settings.model_copy(update={"engine": "transformers"}))
    return (
        f"{rows} rows, {prompt} + {completion}: graph {graph:,.0f} tokens/s, own forward {own:,.0f} "
        f"({graph / own:.1f}x), transformers' generate {peer:,.0f} ({graph / peer:.1f}x)"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="whose decoding is timed")
    parser.add_argument("--models", type=Path, help="where models are written; a temporary folder by default")
    parser.add_argument("--small", nargs="+", choices=SMALL, default=SMALL, help="models of the comparisons")
    parser.add_argument("--no-speed", action="store_true")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_checks: torch sees no GPU", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    failed = []

    def report(name: str, check: Callable[[], str]) -> None:
        started = time.perf_counter()
        try:
            said = check()
        except Exception:
            traceback.print_exc(limit=-6)
            failed.append(name)
            said = "FAILED"
        print(f"{name}: {said} ({time.perf_counter() - started:.1f} s)", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        models = options.models or Path(temporary)
        for shape in options.small:
            folder = write_model(shape, models / shape)
            for dtype in ("float32", "bfloat16"):
                report(f"sampling {shape} {dtype}", lambda f=folder, d=dtype: check_sampling(f, d))
                report(f"forwards {shape} {dtype}", lambda f=folder, d=dtype: check_forwards(f, d))
                report(f"ppo {shape} {dtype}", lambda f=folder, d=dtype: check_ppo(f, d))
        folder = models / options.small[0]
        report(
            "ppo with checkpointing and a value adapter",
            lambda: check_ppo(folder, "bfloat16", gradient_checkpointing=True, value_adapter=True),
        )
        if not options.no_speed:
            large = write_model(options.shape, models / options.shape, dtype="bfloat16")
            report(f"decoding {options.shape}", lambda: decoding_speed(large, 32, 256, 256))
            report(f"decoding {options.shape}, few rows", lambda: decoding_speed(large, 4, 64, 128))
    if failed:
        print(f"gpu_checks: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
