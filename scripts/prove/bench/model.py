"""The model both sides load: random weights of a given shape, saved once with a tokenizer of numbered words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from bench.cases import BEGIN, END, PAD, SHAPES, UNKNOWN

# The output rows of the tokens that the reward wants differ from the others by a direction of this length. In a
# model without any such trait all tokens are alike whatever the hidden state is, and PPO has nothing to move.
TRAIT = 0.2
# Positions the model is made for; rotary embeddings cost the same whatever it is.
CONTEXT = 1024


def write_model(shape: str, folder: Path, *, dtype: str = "float32", seed: int = 0) -> Path:
    """Save the model unless it is there already. Token i is the word `t<i>`."""
    if (folder / "tokenizer.json").is_file():
        return folder
    transformers_logging.disable_progress_bar()
    sizes = SHAPES[shape]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(sizes.architecture, **sizes.config(CONTEXT))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # 1.5 B numbers take a CPU a minute
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        direction_H = torch.nn.functional.normalize(torch.randn(sizes.hidden), dim=0)
    with torch.no_grad():
        rows_VH = model.get_output_embeddings().weight
        rows_VH[list(sizes.wanted)] += (TRAIT * direction_H).to(rows_VH.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    words = {f"t{i}": i for i in range(sizes.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"t{UNKNOWN}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=f"t{BEGIN}",
        eos_token=f"t{END}",
        pad_token=f"t{PAD}",
        unk_token=f"t{UNKNOWN}",
    ).save_pretrained(folder)
    return folder
