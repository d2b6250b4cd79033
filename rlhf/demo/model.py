"""The embedded world's model, made from nothing: a byte-pair tokenizer and a small Llama, pretrained here.

The result is an ordinary model directory (config, safetensors, tokenizer with a chat template) that every
stage takes exactly as it takes a downloaded one. Pretraining is a plain next-token loop over whole
conversations in the chat format, one to a row, rows of like length to a batch. The customer's words count
only a little in the loss: they are mostly chance (names, orders), and at full weight the model needed more
than twice the tokens to learn to take up the product and the order number in its reply.

After each reply stand a few of the desk's notes on what it holds, in random order. They make the end token
of a reply a place where the model knows what it has read; without them nothing is ever predicted there, and a
reward head on it learned little from a thousand comparisons.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.core.metrics import MetricsLog, progress

PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
CONTEXT_TOKENS = 256
# How byte-level BPE writes NUL. No record may hold one, so the model shall not be able to say it.
BYTE_ZERO = "\u0100"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{%- else -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
# message, reply, notes
Conversation = tuple[str, str, str]


MESSAGE_WEIGHT = 0.1
POOL_BATCHES = 16


@dataclass(frozen=True)
class Pretraining:
    """How to pretrain. Every step takes `batch_size` conversations; none is seen twice."""

    num_steps: int
    batch_size: int
    lr: float
    seed: int


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat tokens and template; any text without NUL round-trips.

    Numbers are split into pairs of digits, so that an order number (two digits) is one token to copy.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, USER, ASSISTANT, SYSTEM, END],
        initial_alphabet=[c for c in pre_tokenizers.ByteLevel.alphabet() if c != BYTE_ZERO],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int, seed: int
) -> LlamaForCausalLM:
    """A fresh Llama: grouped-query attention, tied embeddings, a context of 256 tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 5 // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=max(1, hidden_size // 64),
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        # The usual 0.02 suits wide models; at this width attention takes three times as long to begin to look.
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    how: Pretraining,
    *,
    log: MetricsLog | None = None,
) -> list[float]:
    """Next-token training; returns the loss of every step (nats per token, replies and messages weighted).

    The learning rate rises over the first 30 steps and falls linearly over the second half.
    Raises ValueError when there are fewer conversations than the steps take.
    """
    if len(conversations) < how.num_steps * how.batch_size:
        raise ValueError(
            f"{how.num_steps} steps of {how.batch_size} need {how.num_steps * how.batch_size} conversations; "
            f"found {len(conversations)}"
        )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    batches = _batches(_encode(tokenizer, conversations), how)
    losses: list[float] = []
    model.train()
    with progress("pretraining the base model", how.num_steps, stage="base") as tracker:
        for step, (tokens_BT, weights_BT) in enumerate(batches, start=1):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * min(1.0, step / 30, (how.num_steps - step + 1) / (how.num_steps / 2))
            logits_BTV = model(input_ids=tokens_BT).logits[:, :-1]
            nll_BT = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
            loss = (nll_BT * weights_BT[:, 1:]).sum() / weights_BT[:, 1:].sum()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if log is not None and (step % 10 == 0 or step == how.num_steps):
                recent = losses[-10:]
                log.log(step, loss=sum(recent) / len(recent), grad_norm=grad_norm, lr=group["lr"])
            tracker.advance(loss=losses[-1])
    model.eval()
    return losses


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a model directory that `from_pretrained` and every stage can load."""
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights: the conversation exactly as the chat template writes it, then the notes."""
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    backend = tokenizer.backend_tokenizer
    messages = backend.encode_batch([message for message, _, _ in conversations], add_special_tokens=False)
    replies = backend.encode_batch([reply for _, reply, _ in conversations], add_special_tokens=False)
    notes = backend.encode_batch([f" {notes}" for _, _, notes in conversations], add_special_tokens=False)
    rows = []
    for message, reply, note in zip(messages, replies, notes, strict=True):
        prompt = [user, *message.ids, end, assistant]
        ids = [*prompt, *reply.ids, end, *note.ids]
        rows.append((ids, [MESSAGE_WEIGHT] * len(prompt) + [1.0] * (len(ids) - len(prompt))))
    return rows


def _batches(
    rows: list[tuple[list[int], list[float]]], how: Pretraining
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of rows of like length, in random order: tokens_BT and weights_BT (0 on padding)."""
    rng = random.Random(how.seed)
    rows = rows[: how.num_steps * how.batch_size]
    rng.shuffle(rows)
    pool_size = how.batch_size * POOL_BATCHES
    for start in range(0, len(rows), pool_size):
        pool = sorted(rows[start : start + pool_size], key=lambda row: len(row[0]))
        batches = [pool[i : i + how.batch_size] for i in range(0, len(pool), how.batch_size)]
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(ids) for ids, _ in batch)
            tokens_BT = torch.zeros(len(batch), width, dtype=torch.long)
            weights_BT = torch.zeros(len(batch), width)
            for row, (ids, weights) in enumerate(batch):
                tokens_BT[row, : len(ids)] = torch.tensor(ids)
                weights_BT[row, : len(ids)] = torch.tensor(weights)
            yield tokens_BT, weights_BT
