"""Problems small enough to enumerate every completion, where the best policy is known exactly.

For a reward r and KL weight beta the objective E_pi[r] - beta KL(pi || ref) is maximised by
pi*(y) = ref(y) exp(r(y) / beta) / Z, and its value is beta log Z with Z = E_ref[exp(r / beta)] (derived in
Rafailov et al., arXiv:2305.18290, appendix A.1). So how far a trained policy has come is a number, not a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.chat import ChatCodec
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, Sampled
from rlhf.ppo.completions import Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.measure import token_logprobs_of


@dataclass(frozen=True)
class ExactProblem:
    """One prompt with all its completions. rewards_N, ref_logprobs_N: of whole completions; sums to 1."""

    completions: Completions
    config: PPOConfig
    backbone: Backbone
    rewards_N: Tensor
    ref_logprobs_N: Tensor

    @classmethod
    def enumerate(
        cls,
        backbone: Backbone,
        prompt_ids: Sequence[int],
        reward: Callable[[Sequence[int]], float],
        config: PPOConfig,
    ) -> ExactProblem:
        """Every completion of at most max_completion_tokens tokens. Raises ValueError where the probabilities of
        the reference do not add up to 1, which would mean that a completion is missing."""
        rows = list(
            all_completions(
                backbone.vocab_size, backbone.codec.end_token_ids, config.sampling.max_completion_tokens
            )
        )
        completions = Completions(
            backbone,
            [Request(prompt_ids, 0)] * len(rows),
            [Sampled(row, [], row[-1] in backbone.codec.end_token_ids) for row in rows],
            max_tokens=config.micro_batch_tokens,
        )
        rewards_N = torch.tensor([reward(row) for row in rows], dtype=torch.float64)
        ref_N = sequence_logprobs(backbone, REFERENCE, completions, config)
        total = ref_N.exp().sum().item()
        if abs(total - 1) > 1e-4:
            raise ValueError(f"the reference's probabilities add up to {total}; expected 1")
        return cls(completions, config, backbone, rewards_N, ref_N)

    def objective(self, role: str) -> float:
        """E_pi[r] - beta KL(pi || ref) of a role, exactly."""
        logprobs_N = sequence_logprobs(self.backbone, role, self.completions, self.config)
        gain_N = self.rewards_N - self.config.kl_coef * (logprobs_N - self.ref_logprobs_N)
        return (logprobs_N.exp() * gain_N).sum().item()

    @property
    def reference_objective(self) -> float:
        return (self.ref_logprobs_N.exp() * self.rewards_N).sum().item()

    @property
    def optimum(self) -> float:
        """beta log Z."""
        beta = self.config.kl_coef
        return (beta * torch.logsumexp(self.ref_logprobs_N + self.rewards_N / beta, 0)).item()

    @property
    def optimum_kl(self) -> float:
        """KL(pi* || ref) in nats: how far there is to go."""
        log_pi_N = torch.log_softmax(self.ref_logprobs_N + self.rewards_N / self.config.kl_coef, 0)
        return (log_pi_N.exp() * (log_pi_N - self.ref_logprobs_N)).sum().item()

    def progress(self, role: str) -> float:
        """0 at the reference, 1 at the optimum."""
        start = self.reference_objective
        return (self.objective(role) - start) / (self.optimum - start)


def toy_backbone(seed: int, *, vocab_size: int = 7, pad_is_end: bool = True) -> Backbone:
    """A random two-layer Llama over a handful of tokens, the first of which ends completions.

    Its weights are drawn wide, so that its distributions differ from position to position. pad_is_end makes the
    tokenizer's pad token the end token, as many real tokenizers have it.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=vocab_size,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t2"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t0", pad_token="t0" if pad_is_end else "t1", unk_token="t2"
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Backbone(model, ChatCodec(tokenizer, [0], 32, "toy"), "toy")


class TokenReward:
    """A reward that reads the token ids of a completion, for problems whose tokens mean nothing as text."""

    name, mean, std = "the problem's reward", 0.0, 1.0

    def __init__(self, function: Callable[[Sequence[int]], float], prompt_length: int) -> None:
        self._function, self._prompt_length = function, prompt_length

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Scores [B]."""
        rows = completions.sequences.rows
        return torch.tensor([float(self._function(row[self._prompt_length :])) for row in rows])


def all_completions(vocab_size: int, end_token_ids: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Every token sequence that ends with an end token, or has max_tokens tokens without one."""
    stack: list[list[int]] = [[]]
    while stack:
        prefix = stack.pop()
        for token in range(vocab_size):
            row = [*prefix, token]
            if token in end_token_ids or len(row) == max_tokens:
                yield row
            else:
                stack.append(row)


@torch.no_grad()
def sequence_logprobs(backbone: Backbone, role: str, completions: Completions, config: PPOConfig) -> Tensor:
    """Log-probability [N] of whole completions, float64, on the CPU."""
    totals_N = torch.zeros(len(completions), dtype=torch.float64)
    rows_per_batch = max(1, config.micro_batch_tokens // max(completions.sequences.lengths))
    for start in range(0, len(completions), rows_per_batch):
        batch = completions.batch(range(start, min(start + rows_per_batch, len(completions))))
        hidden_NH = completions.hidden(role, batch)
        logprobs_N, _ = token_logprobs_of(backbone, completions, batch, hidden_NH, config)
        totals_N.index_add_(0, batch.rows_N.cpu(), logprobs_N.double().cpu())
    return totals_N
