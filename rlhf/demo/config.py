"""Settings of `rlhf demo`: the seed and how large each stage is. Torch-free."""

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
    pretrain_batch_size: int = Field(8, ge=1, description="conversations per step")
    pretrain_lr: float = Field(3e-3, gt=0, description="peak learning rate of pretraining")

    num_demonstrations: int = Field(1500, ge=20, description="demonstrations for supervised tuning")
    sft_epochs: int = Field(2, ge=1, description="passes over the demonstrations")
    num_rated_prompts: int = Field(3000, ge=20, description="prompts whose completions are rated in pairs")
    overlap: int = Field(2, ge=1, le=5, description="raters for each pair")
    reward_epochs: int = Field(2, ge=1, description="passes over the comparisons, at most")
    num_ppo_prompts: int = Field(1500, ge=8, description="prompts that ppo learns on")
    ppo_iterations: int = Field(60, ge=1, description="rollouts, each followed by its updates")
    ppo_batch: int = Field(64, ge=4, description="completions per rollout")
    num_heldout_prompts: int = Field(400, ge=2, description="prompts of the final comparison, never seen")
    temperature: float = Field(0.85, gt=0, description="sampling temperature of every stage")
    max_completion_tokens: int = Field(64, ge=8, le=128, description="longest completion")
