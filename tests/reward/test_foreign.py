"""Reward models of other frameworks, as plain transformers and TRL leave them: what they score, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from reward.config import ScoreConfig
from reward.foreign import Classifier, ForeignScorer, find_classifier, open_classifier
from reward.score import RewardScale, RewardScorer
from reward.score_file import run as score_file
from rlhf.core.adapters import save_reward
from rlhf.core.backbone import Backbone
from rlhf.core.errors import CheckpointError, ConfigError, DataError, ModelError
from rlhf.core.records import Prompt
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, ModelSettings

SETTINGS = ModelSettings(device="cpu")
PROMPTS = [
    Prompt.model_validate({"prompt": f"tell a tale of {what}"}) for what in ("rain", "the sun and a cat")
]
TEXTS = ["the cat sat on a mat and saw red birds", "sorry"]


def drawn(model: Any, seed: int = 3) -> Any:
    """Random weights with a spread that makes scores differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """decoder(architecture, num_labels=1, ...) -> a ...ForSequenceClassification as `save_pretrained` writes it."""
    made: dict[Any, Path] = {}

    def make(architecture: str = "llama", *, num_labels: int = 1, **options: Any) -> Path:
        key = (architecture, num_labels, *sorted(options.items()))
        if key not in made:
            base = tiny_model(architecture, **options)
            folder = tmp_path_factory.mktemp("classifiers") / "model"
            config = AutoConfig.from_pretrained(base, num_labels=num_labels)
            drawn(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """encoder(architecture) -> a tiny encoder with a WordPiece vocabulary."""

    def make(architecture: str) -> Path:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator([*TEXTS, *(prompt.text for prompt in PROMPTS)] * 4, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
            sep_token="[SEP]", mask_token="[MASK]", model_max_length=48,
        )  # fmt: skip
        sizes = {
            "bert": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
            },
            "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        }[architecture]
        config = AutoConfig.for_model(
            architecture, vocab_size=len(fast), max_position_embeddings=64, num_labels=1, **sizes
        )
        folder = tmp_path_factory.mktemp("encoders") / architecture
        drawn(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
        fast.save_pretrained(folder)
        return folder

    return make


def opened(folder: Path, label: str | None = None) -> ForeignScorer:
    return ForeignScorer.load(Classifier(str(folder), label), SETTINGS)


@torch.no_grad()
def plain(folder: Path, ids: list[int]) -> float:
    """One row through plain transformers, without padding and without its pooling by the pad token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.get_text_config().pad_token_id = None
    return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


# ---- scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"pad_is_eos": True}),
        ("qwen3", {"chat_template": True}),
        ("gpt2", {"pad_is_eos": True}),
        ("gpt_neox", {}),
    ],
)
def test_a_decoder_scores_as_one_row_at_a_time_in_plain_transformers(
    decoder: Callable[..., Path], architecture: str, options: dict[str, Any]
) -> None:
    folder = decoder(architecture, **options)
    scorer = opened(folder)
    rows = [scorer.row(prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    assert len(rows[0]) != len(rows[1])
    # Rows that end in the end token, where pooling by pad == eos would read one token too early.
    rows += [[*row, scorer.tokenizer.eos_token_id] for row in rows]
    expected = [plain(folder, row) for row in rows]
    together = scorer.score_rows(rows, max_tokens=10_000).tolist()
    assert together == pytest.approx(expected, abs=1e-5)
    assert max(together) - min(together) > 0.01
    alone = [scorer.score_rows([row], max_tokens=1).item() for row in rows]
    assert alone == pytest.approx(together, abs=1e-5)
    assert scorer.score_texts(PROMPTS, TEXTS, max_tokens=64) == pytest.approx(expected[:2], abs=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_an_encoder_scores_as_one_row_at_a_time(encoder: Callable[[str], Path], architecture: str) -> None:
    folder = encoder(architecture)
    scorer = opened(folder)
    assert not scorer.reads_last_token
    expected = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        ids = scorer.tokenizer(f"{prompt.text}\n{text}")["input_ids"]
        assert (ids[0], ids[-1]) == (2, 3)
        expected.append(plain(folder, ids))
    assert scorer.score_texts(PROMPTS, TEXTS, max_tokens=10_000) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.01


def test_a_batch_that_uses_every_id_is_read_row_by_row(decoder: Callable[..., Path]) -> None:
    folder = decoder("llama", pad_is_eos=True)
    scorer = opened(folder)
    everything = list(range(scorer.vocab_size))
    rows = [everything[:100], everything[100:200], everything[200:]]
    expected = [plain(folder, row) for row in rows]
    assert scorer.score_rows(rows, max_tokens=10_000).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_chat_template_writes_the_conversation(decoder: Callable[..., Path]) -> None:
    scorer = opened(decoder("qwen3", chat_template=True))
    prompt = Prompt.model_validate(
        {"prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]}
    )
    written = scorer.tokenizer.decode(scorer.row(prompt, "good"))
    assert written == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\ngood<|im_end|>\n"
    )
    bare = opened(decoder())
    assert bare.tokenizer.decode(bare.row(prompt, "good")) == "be kind\nhello\ngood"


def test_scores_are_raw_unless_a_scale_lies_beside_it(decoder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(decoder(), tmp_path / "model"))
    assert opened(folder).scale == RewardScale(0.0, 1.0, 1.0)
    RewardScale(0.25, 2.0, 1.5).save(folder)
    scorer = opened(folder)
    assert scorer.scale == RewardScale(0.25, 2.0, 1.5)
    assert scorer.score_texts(PROMPTS, TEXTS, max_tokens=64) == opened(decoder()).score_texts(
        PROMPTS, TEXTS, max_tokens=64
    )


def test_one_label_of_several(decoder: Callable[..., Path], workspace: Launch, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(decoder(num_labels=3), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "helpful", "1": "true", "2": "kind"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"3 labels: helpful, true, kind; .* as in .*model#LABEL"):
        find_classifier(str(folder), workspace)
    with pytest.raises(ConfigError, match="no label 'polite' among helpful, true, kind"):
        find_classifier(f"{folder}#polite", workspace)
    by_name, by_number = (
        open_classifier(found, SETTINGS).score_texts(PROMPTS, TEXTS, max_tokens=64)
        for found in (find_classifier(f"{folder}#{label}", workspace) for label in ("kind", "2"))
        if found is not None
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    row = opened(folder, "kind").row(PROMPTS[0], TEXTS[0])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([row])).logits[0, 2].item()
    assert by_name == by_number
    assert by_name[0] == pytest.approx(expected, abs=1e-5)


def test_in_bfloat16(decoder: Callable[..., Path]) -> None:
    half = ForeignScorer.load(Classifier(str(decoder())), ModelSettings(device="cpu", dtype="bfloat16"))
    assert half.model.dtype == torch.bfloat16
    whole = opened(decoder()).score_texts(PROMPTS, TEXTS, max_tokens=64)
    assert half.score_texts(PROMPTS, TEXTS, max_tokens=64) == pytest.approx(whole, abs=0.05, rel=0.05)


# ---- what other frameworks leave, and what ours do ---------------------------------------------------------


def test_a_model_that_trl_trained(decoder: Callable[..., Path], workspace: Launch) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"chosen": f"cat {i} thank you", "rejected": f"cat {i} sorry"} for i in range(4)]
    out = workspace.workspace / "models" / "trl"
    config = trl.RewardConfig(
        str(out), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(decoder()),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(decoder()),
    )
    trainer.train()
    trainer.save_model(str(out))
    found = find_classifier("models/trl", workspace)
    assert found is not None
    scorer = open_classifier(found, SETTINGS)
    assert isinstance(scorer, ForeignScorer)
    row = scorer.row(PROMPTS[0], TEXTS[0])
    model = trainer.model.eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([row])).logits[0, 0].item()
    assert scorer.score_texts(PROMPTS[:1], TEXTS[:1], max_tokens=64)[0] == pytest.approx(expected, abs=1e-5)


def save_peft(folder: Path, base: Path, name: str, **changes: Any) -> Any:
    """A SEQ_CLS adapter with its head over a causal base, as peft saves it; the model it was saved from."""
    config = AutoConfig.from_pretrained(base, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    lora = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": name} | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return adapted.eval()


def test_an_adapter_of_another_framework(workspace: Launch) -> None:
    folder = workspace.workspace / "runs" / "theirs"
    model = save_peft(folder, workspace.workspace / "models" / "base", "models/base")
    found = find_classifier("runs/theirs", workspace)
    assert found is not None
    assert found.base == str(workspace.workspace / "models" / "base")
    scorer = open_classifier(found, SETTINGS)
    assert isinstance(scorer, ForeignScorer)
    rows = [scorer.row(prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]
    assert scorer.score_rows(rows, max_tokens=10_000).tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 0.01

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    head = next(key for key in tensors if "score" in key)
    save_file({key: value for key, value in tensors.items() if key != head}, path)
    with pytest.raises(CheckpointError, match="holds 0 score heads; expected one"):
        open_classifier(found, SETTINGS)
    lost = next(key for key in tensors if "lora_A" in key)
    save_file({key: value for key, value in tensors.items() if key != lost}, path)
    with pytest.raises(CheckpointError, match=r"runs/theirs: weights 1 missing, 0 unexpected"):
        open_classifier(found, SETTINGS)


@pytest.mark.parametrize("chat_template", [False, True])
def test_a_run_of_ours_that_was_merged_scores_the_same(
    workspace: Launch, tiny_model: Callable[..., Path], chat_template: bool
) -> None:
    """Base, adapter and head, merged and saved by plain peft and transformers."""
    root = workspace.workspace
    base = root / "models" / "chat"
    shutil.copytree(tiny_model("qwen3", chat_template=chat_template), base)
    backbone = Backbone.load(base, SETTINGS, name="models/chat")
    role = backbone.add_role("reward", LoraSettings(r=4), seed=0, scalar_head=True)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.1, generator=generator)
    folder = root / "runs" / "reward" / "adapter"
    save_reward(role, folder, backbone)
    RewardScale(0.1, 2.0, 1.5).save(folder)
    assert find_classifier("runs/reward", workspace) is None  # not this door: it shares the backbone
    expected = RewardScorer.attach(backbone, folder, name="again").score_texts(PROMPTS, TEXTS, max_tokens=64)

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    merged = root / "models" / "merged"
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(folder).save_pretrained(merged)
    for name in (folder / "reward.json", base / "generation_config.json"):
        shutil.copy(name, merged)
    found = find_classifier("models/merged", workspace)
    assert found is not None
    assert found.ours
    scorer = open_classifier(found, SETTINGS)
    assert scorer.scale == RewardScale(0.1, 2.0, 1.5)
    assert scorer.score_texts(PROMPTS, TEXTS, max_tokens=64) == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 0.01
    # The same weights as any classifier: the rows of this project give the same scores there.
    weights = opened(merged)
    codec = backbone.codec
    rows = [
        [*codec.prompt_ids(p.messages), *codec.completion_ids(t)] for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    assert weights.score_rows(rows, max_tokens=64).tolist() == pytest.approx(expected, abs=1e-4)


# ---- what is refused ---------------------------------------------------------------------------------------


def test_weights_that_are_missing_or_left_over(decoder: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would draw a score head at random and warn."""
    folder = Path(shutil.copytree(decoder(), tmp_path / "model"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for changed, message in (
        (
            {k: v for k, v in tensors.items() if k != "score.weight"},
            "1 missing, 0 unexpected, 0 of another shape",
        ),
        (
            tensors | {"v_head.weight": torch.zeros(1, 32)},
            r"0 missing, 1 unexpected, .*first: v_head\.weight",
        ),
        (tensors | {"score.weight": torch.zeros(1, 16)}, "cannot be loaded|1 of another shape"),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises((CheckpointError, ModelError), match=message):
            opened(folder)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a sequence-classification model"):
        opened(folder)


def test_what_is_no_reward_model_is_named(workspace: Launch, tmp_path: Path) -> None:
    root = workspace.workspace
    with pytest.raises(
        ModelError, match=r"base: LlamaForCausalLM; expected a reward run or .*`rlhf reward` trains"
    ):
        find_classifier("models/base", workspace)
    with pytest.raises(
        DataError, match=r"org/none: no such file or directory .looked in \. and in .*from the hub"
    ):
        find_classifier("org/none", workspace)
    # A folder that is here, mistyped behind it: the hub is not asked.
    assert find_classifier("models/nothing", workspace) is None
    save_peft(root / "policy", root / "models" / "base", "models/base", task_type="CAUSAL_LM")
    with pytest.raises(CheckpointError, match="a CAUSAL_LM adapter, which does not score; expected SEQ_CLS"):
        find_classifier("policy", workspace)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"broken/config\.json: not JSON"):
        find_classifier(str(tmp_path / "broken"), workspace)
    (tmp_path / "broken" / "config.json").write_text('{"architectures": ["LlamaForRewardModel"]}')
    with pytest.raises(ModelError, match="broken: LlamaForRewardModel; expected a reward run"):
        find_classifier(str(tmp_path / "broken"), workspace)


def test_a_template_that_refuses_a_prompt_is_named(decoder: Callable[..., Path]) -> None:
    scorer = opened(decoder("qwen3", chat_template=True))
    scorer.tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(DataError, match=rf"refuses prompt {PROMPTS[0].prompt_id}: no system turns"):
        scorer.row(PROMPTS[0], "x")


# ---- files -------------------------------------------------------------------------------------------------


def test_scoring_a_file(
    encoder: Callable[[str], Path], workspace: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder with room for 48 tokens: what is longer is refused, left out, or loses its beginning."""
    folder = encoder("distilbert")
    source = workspace.workspace / "answers.jsonl"
    long = "red birds " * 40
    rows = [{"prompt": PROMPTS[0].text, "completion": text} for text in (TEXTS[0], long, TEXTS[1])]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scored(how: str) -> list[dict[str, Any]]:
        target = workspace.workspace / f"{how}.jsonl"
        config = ScoreConfig(file=str(source), reward=str(folder), on_too_long=how, model={"device": "cpu"})  # type: ignore[arg-type]
        score_file(config, Launch(workspace.workspace, "", out=target))
        return [json.loads(line) for line in target.read_text().splitlines()]

    with pytest.raises(DataError, match=r"answers\.jsonl:2: prompt and completion have \d+ tokens; .* is 48"):
        scored("error")
    dropped = scored("drop")
    assert dropped[1]["score"] is None
    assert "2 completions" in capsys.readouterr().out
    cut = scored("truncate-left")
    assert "1 too long: lost the beginning" in capsys.readouterr().out
    scorer = opened(folder)
    expected = scorer.score_texts([PROMPTS[0]] * 2, [TEXTS[0], TEXTS[1]], max_tokens=10_000)
    for found in (dropped, cut):
        assert [found[0]["score"], found[2]["score"]] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    ids = scorer.tokenizer(f"{PROMPTS[0].text}\n{long}")["input_ids"]
    kept = [ids[0], *ids[-47:]]
    assert cut[1]["score"] == pytest.approx(plain(folder, kept), rel=1e-5, abs=1e-5)
    with pytest.raises(DataError, match=re.escape(f"{folder}: 1 of 3 completions")):
        scorer.score_texts([PROMPTS[0]] * 3, [TEXTS[0], long, TEXTS[1]], max_tokens=64)
