"""Settings of `rlhf demo`: the seed and how large each stage is."""

from __future__ import annotations

from pydantic import Field

from rlhf.core.config import Settings


class DemoConfig(Settings):
    """The embedded world and its loop. The defaults end within 8 minutes on 2 idle CPU cores."""

    seed: int = Field(0, ge=0, description="decides the world, the model and every stage")
    vocab_size: int = Field(1280, ge=300, le=4096, description="most tokens of the byte-pair tokenizer")
    hidden_size: int = Field(128, ge=64, multiple_of=64, description="width of the model")
    num_layers: int = Field(4, ge=2, description="layers of the model")
    pretrain_steps: int = Field(2000, ge=1, description="optimizer steps of pretraining")
    pretrain_batch_size: int = Field(8, ge=1, description="conversations a step")
    pretrain_lr: float = Field(5e-3, gt=0, description="peak learning rate of pretraining")
    num_demonstrations: int = Field(1500, ge=8, description="demonstrations for supervised tuning")
    num_rated_prompts: int = Field(1000, ge=8, description="prompts whose completions are rated")
    num_ppo_prompts: int = Field(1500, ge=8, description="prompts that ppo learns on")
    num_heldout_prompts: int = Field(400, ge=2, description="prompts for the final comparison, never seen")
    overlap: int = Field(2, ge=1, le=5, description="raters for each pair")
