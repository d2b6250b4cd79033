"""The tiny random model of the killed runs."""

from __future__ import annotations

from pathlib import Path

from tokenizers import pre_tokenizers

from rlhf.ppo.closed_form import toy_backbone


def write_model(folder: Path, vocab_size: int = 24) -> None:
    """Two layers over the words t0 .. t23, split at blanks; t0 ends completions."""
    backbone = toy_backbone(0, vocab_size=vocab_size, pad_is_end=False)
    backbone.codec.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone.model.save_pretrained(folder)
    backbone.codec.tokenizer.save_pretrained(folder)
