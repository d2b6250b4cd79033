"""Shared by all tests: no network, one torch thread, real data where it is present, and in CI no skips."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Literal

import pytest

# Read by the libraries when they are imported, so they are set first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from rlhf.core.backbone import Backbone
from rlhf.core.run import Launch
from rlhf.core.settings import ModelSettings

REPOSITORY = Path(__file__).resolve().parents[1]


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_configure(config: pytest.Config) -> None:
    # Two torch threads beside another process are slower than one by a factor of ten and more.
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything that a test needs is there, so a skip means that something is not being checked."""
    report = yield
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which counts as failed: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself (`importorskip`)."""
    report = yield
    if in_ci() and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which counts as failed: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository (or RLHF_SHARED_DATA); not part of the project."""
    folder = Path(os.environ.get("RLHF_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        message = f"real data is not present at {folder}"
        if in_ci():
            pytest.fail(f"{message}; CI must have it")
        pytest.skip(message)
    return folder


# ---- tiny models --------------------------------------------------------------------------------------------

_WORDS = (
    "the cat sat on a mat and saw red green blue birds while an old man told one more tale of rain and sun "
    "please thank you sorry hello order number ticket late early good bad happy sad"
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What each architecture needs beyond the common sizes. Windows are shorter than the probes that use them.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {},
    "gpt2": {},
}


def _tiny_tokenizer(*, pad_is_eos: bool, chat_template: bool) -> Any:
    """A byte-level BPE of at most 300 tokens. Ids: 0 <pad> (unless pad == eos), then <s>, </s>, chat marks."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    if not pad_is_eos:
        special.insert(0, "<pad>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat_template:
        fast.chat_template = _CHAT_TEMPLATE
    return fast


def _tiny_config(architecture: str, vocab_size: int, context: int, num_layers: int) -> Any:
    extra = _ARCHITECTURES[architecture]
    if architecture == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=vocab_size, n_embd=32, n_layer=num_layers, n_head=4, n_positions=context
        )
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "pad_token_id": 0,
    }
    if architecture == "gpt_neox":
        del sizes["num_key_value_heads"]
    return AutoConfig.for_model(architecture, **sizes | extra)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model(architecture="llama", pad_is_eos=False, chat_template=False, ...) -> a saved model directory.

    Random weights with a spread that makes next-token distributions uneven. The directory is shared by all
    tests that ask for the same arguments: copy it before changing it.
    """
    made: dict[tuple[Any, ...], Path] = {}

    def make(
        architecture: str = "llama",
        *,
        pad_is_eos: bool = False,
        chat_template: bool = False,
        context: int = 128,
        num_layers: int = 4,
    ) -> Path:
        key = (architecture, pad_is_eos, chat_template, context, num_layers)
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / "-".join(map(str, key))
            tokenizer = _tiny_tokenizer(pad_is_eos=pad_is_eos, chat_template=chat_template)
            config = _tiny_config(architecture, len(tokenizer), context, num_layers)
            config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = AutoModelForCausalLM.from_config(config)
                for name, parameter in model.named_parameters():
                    if parameter.dim() > 1:
                        torch.nn.init.normal_(
                            parameter, std=0.5 if "embed" in name or "wte" in name else 0.15
                        )
            end = [tokenizer.eos_token_id]
            if chat_template:
                end.insert(0, tokenizer.convert_tokens_to_ids("<|im_end|>"))
            model.generation_config = GenerationConfig(
                eos_token_id=end, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id
            )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def load_tiny(tiny_model: Callable[..., Path]) -> Callable[..., Backbone]:
    """load_tiny(...) -> a fresh Backbone of `tiny_model(...)`."""

    def load(*args: Any, dtype: Literal["float32", "bfloat16"] = "float32", **options: Any) -> Backbone:
        settings = ModelSettings(device="cpu", dtype=dtype)
        return Backbone.load(tiny_model(*args, **options), settings, name="models/base")

    return load


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Callable[..., Path]) -> Launch:
    """A workspace of its own with the tiny Llama as models/base; the launch has no --out."""
    root = tmp_path / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    return Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")
