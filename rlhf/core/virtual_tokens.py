"""Prompt learning: trained positions before every sequence, beside a base that stays as it is.

    prompt tuning  (Lester et al., arXiv:2104.08691)   embeddings before the first layer
    prefix tuning  (Li & Liang, arXiv:2101.00190)      keys and values in every layer

Both begin as what the base makes of some real tokens, which learns far better than random numbers. They change no
weight, so they cannot be merged into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from torch import Tensor
from transformers import DynamicCache


def has_virtual_tokens(config: Any) -> bool:
    """Whether a peft configuration is one of prompt learning."""
    return isinstance(config, PromptLearningConfig)


def prompt_config(*, prefix: bool, num_tokens: int, base: str) -> PromptLearningConfig:
    kind = PrefixTuningConfig if prefix else PromptTuningConfig
    return kind(task_type="CAUSAL_LM", num_virtual_tokens=num_tokens, base_model_name_or_path=base)


def prompted_hidden(model: Any, tokens_BS: Tensor) -> Tensor:
    """[B, S, H] final hidden states of the tokens behind the virtual ones. Rows are padded on the right."""
    decoder, config = model.get_base_model().get_decoder(), model.active_peft_config
    if isinstance(config, PrefixTuningConfig):
        width = config.num_virtual_tokens + tokens_BS.shape[1]
        cache = model.get_prompt(len(tokens_BS), max_cache_len=width)
        return decoder(input_ids=tokens_BS, past_key_values=cache).last_hidden_state
    embedded = model.word_embeddings(tokens_BS)
    prompts = model.get_prompt(batch_size=len(tokens_BS)).to(embedded.dtype)
    output = decoder(inputs_embeds=torch.cat([prompts, embedded], dim=1), use_cache=False)
    return output.last_hidden_state[:, config.num_virtual_tokens :]


@torch.no_grad()
def start_from_tokens(model: Any, token_ids: Sequence[int]) -> None:
    """Set the virtual tokens to what the base makes of these, repeated until they suffice."""
    config = model.active_peft_config
    count = config.num_virtual_tokens
    ids = (list(token_ids) * -(-count // len(token_ids)))[:count]
    tokens_1V = torch.tensor([ids], device=model.device)
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    if isinstance(config, PrefixTuningConfig):
        cache = DynamicCache()
        model.get_base_model().get_decoder()(input_ids=tokens_1V, past_key_values=cache, use_cache=True)
        # peft reads a virtual token's numbers as [2 * layers, heads, head size], keys before values
        parts = [part for layer in cache.layers for part in (layer.keys[0], layer.values[0])]
        weight.copy_(torch.stack(parts).permute(2, 0, 1, 3).reshape(count, -1))
    else:
        weight.copy_(model.word_embeddings(tokens_1V)[0])
