"""Two PPO iterations and a supervised run over a base in 4 bits; prints what was found as JSON. Run by
test_ppo_4bit.py.

A program of its own, because bitsandbytes lies outside the environment of the tests: once it can be imported,
peft imports it in every process.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf.core.adapters import load_adapter, save_policy
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import Stopped
from rlhf.core.metrics import MetricsLog
from rlhf.core.quantization import quantization_states
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, directory_sha256, read_manifest
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.train import PPOTrainer
from sft.config import SFTConfig
from sft.tasks import find_data, load_tasks
from sft.train import mean_loss
from sft.train import run as tune

MODEL = ModelSettings(device="cpu", quantization="nf4")
LENGTHS = (6, 3, 14, 9)


class Vowels:
    """The share of vowels, with the interface of a reward."""

    name, mean, std = "the share of vowels", 0.0, 1.0

    def score(self, completions: Any, prompts: Any, texts: Any) -> torch.Tensor:
        return torch.tensor([sum(c in "aeiou" for c in text) / max(1, len(text)) for text in texts])


def base_hash(backbone: Backbone) -> str:
    """Of every tensor of the base, 4-bit weights and their scales among them."""
    total = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def encoded_prompts(backbone: Backbone) -> list[EncodedPrompt]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, backbone.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    return [EncodedPrompt(Prompt.model_validate({"prompt": f"p {i}"}), row) for i, row in enumerate(rows)]


def greedy_equals_generate(backbone: Backbone) -> bool:
    model = backbone.merged("policy")
    prompts = encoded_prompts(backbone)
    settings = SamplingSettings(temperature=0, max_completion_tokens=10)
    ends = backbone.codec.end_token_ids
    drawn = sample(
        model, [Request(p.ids, i) for i, p in enumerate(prompts)], settings, end_token_ids=ends, seed=0
    )
    for prompt, row in zip(prompts, drawn, strict=True):
        tokens = torch.tensor([prompt.ids])
        output = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=10, pad_token_id=0
        )
        if row.tokens != output[0, len(prompt.ids) :].tolist():
            return False
    return True


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.hidden("policy", torch.tensor([encoded_prompts(backbone)[2].ids])))


def supervised(model: str, out: Path) -> dict[str, Any]:
    """A run of method qlora, and one that is stopped and resumed."""
    rows = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefgh" for n in (3, 4)]
    data = out / "letters.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SFTConfig.model_validate(
        {
            "base": model,
            "data": [str(data)],
            "method": "qlora",
            "validation_fraction": 0.25,
            "num_epochs": 4,
            "batch_size": 6,
            "micro_batch_size": 3,
            "num_samples": 1,
            "sample_tokens": 4,
            "optim": {"lr": 1e-2, "warmup_steps": 0},
            "model": {"device": "cpu"},
        }
    )

    def start(name: str, **how: bool) -> Path:
        tune(config, Launch(workspace=out, db="sqlite://", out=out / name, **how))
        return out / name

    whole, log = start("whole"), MetricsLog.log

    def log_and_stop(self: MetricsLog, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 3 and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsLog.log = log_and_stop  # type: ignore[method-assign]
    try:
        start("stopped")
    except Stopped:
        MetricsLog.log = log  # type: ignore[method-assign]
    resumed = start("stopped", resume=True)
    merged = Backbone.load(whole / "model", ModelSettings(device="cpu"))
    (task,) = load_tasks(find_data(config, Launch(out, "")), merged.codec, config)
    return {
        "metrics": read_manifest(whole).metrics,
        "reloaded_loss": mean_loss(merged, merged.roles[REFERENCE], task.validation, 1000),
        "resumed_equal": all(
            directory_sha256(whole / name) == directory_sha256(resumed / name)
            for name in ("adapter", "model")
        ),
    }


def main(model: str, out: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    backbone = Backbone.load(model, MODEL, name="base")
    before = base_hash(backbone)
    config = PPOConfig.model_validate(
        {
            "num_iterations": 2,
            "num_prompts": 4,
            "samples_per_prompt": 2,
            "sampling": {"max_completion_tokens": 8},
            "lora": {"r": 4, "alpha": 8},
            "optim": {"lr": 5e-3},
            "score_normalization": "none",
            "value_adapter": True,
            "gradient_checkpointing": True,
        }
    )
    trainer = PPOTrainer(backbone, Vowels(), config, max_tokens=32)
    first_weights = [p.detach().clone() for p in trainer.parameters]
    stream = PromptStream(encoded_prompts(backbone), seed=0)
    ratio_errors, sampler_gaps = [], []
    for _ in range(2):
        batch = trainer.collect(stream)
        stats = trainer.update(batch, trainer.targets(batch))
        trainer.finish_iteration(0.0, len(batch.texts))
        ratio_errors.append(stats.first_ratio_error)
        sampler_gaps.append(batch.sampler_gap)
    save_policy(backbone.roles["policy"], out, backbone)
    fresh = Backbone.load(model, MODEL, name="base")
    load_adapter(fresh, "policy", out, base_name="base", scalar_head=False)
    linear = [m for m in backbone.model.modules() if type(m).__name__ == "Linear4bit"]
    whole = Backbone.load(model, ModelSettings(device="cpu"))
    states = {id(state) for state in quantization_states(backbone.model)}
    return {
        "sft": supervised(model, out),
        "num_4bit_layers": len(linear),
        "bytes_per_weight": sum(m.weight.numel() * m.weight.element_size() for m in linear)
        / sum(m.in_features * m.out_features for m in linear),
        "trunk": trainer.trunk_note,
        "base_unchanged": base_hash(backbone) == before == base_hash(fresh),
        "weights_moved": [
            bool((old != new).any()) for old, new in zip(first_weights, trainer.parameters, strict=True)
        ],
        "ratio_errors": ratio_errors,
        "sampler_gaps": sampler_gaps,
        "greedy_equals_generate": greedy_equals_generate(backbone),
        "reloaded_difference": (logits(fresh) - logits(backbone)).abs().max().item(),
        "distance_to_fp32": (
            (whole.model(torch.arange(5, 20)[None]).logits - backbone.model(torch.arange(5, 20)[None]).logits)
            .abs()
            .mean()
            .item()
        ),
        "states_shared": all(
            {id(state) for state in quantization_states(role.causal_lm)} == states
            for role in backbone.roles.values()
        ),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
