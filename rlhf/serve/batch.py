"""The completions of one model that are written at the same time; they join and leave between tokens.

Made of the sampler's parts: its choice of a token, its step for decoders of Llama's kind (others use their own
forward), the same numbers behind each token. What is written is therefore what `rlhf.core.sampler.sample` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from rlhf.core.chat import ChatCodec
from rlhf.core.decode_step import DecodeStep, decode_step
from rlhf.core.few_rows import handy_rows
from rlhf.core.packed import packed
from rlhf.core.sampler import choose
from rlhf.core.settings import SamplingSettings
from rlhf.core.vocabulary import OutputHead
from rlhf.serve.jobs import Job, TokenLogprob
from rlhf.serve.shared_cache import SharedCache, prompt_cache


class Writer:
    """A causal LM made ready to decode: weights arranged for few rows where that can be done.

    Nothing of it may be trained while it is open. `close` gives the arranged copies back.
    """

    def __init__(self, model: Any, codec: ChatCodec) -> None:
        self.model, self.codec = model, codec
        self.decoder, self.head = model.get_decoder(), OutputHead.of(model)
        prompt_cache(model.config, 1)  # raises for layers that no cache of ours can hold
        self.step: DecodeStep | None = decode_step(model)
        self._open = ExitStack()
        self._open.enter_context(packed(self.head.linear))

    def close(self) -> None:
        self._open.close()
        self.step = None


class Batch:
    """Rows of one `Writer`. `add` computes prompts, `advance` writes one token a row."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.device = writer.model.device
        self.jobs: list[Job | None] = []  # None: a row that ended and stays for the number's sake
        self._cache = SharedCache(writer.model.config)
        self._hidden_BH: Tensor | None = None

    @property
    def num_jobs(self) -> int:
        return sum(job is not None for job in self.jobs)

    def tokens_with(self, jobs: Sequence[Job]) -> int:
        """Rows x tokens that the cache may come to hold when these join."""
        rows = [*(job for job in self.jobs if job is not None), *jobs]
        return len(rows) * max((job.most_tokens for job in rows), default=0)

    @torch.no_grad()
    def add(self, jobs: Sequence[Job]) -> None:
        """Compute the prompts of new rows, each distinct one once, and let them join."""
        self._leave(exactly=True)
        places: dict[tuple[int, ...], int] = {}
        owners = [places.setdefault(tuple(job.prompt_ids), len(places)) for job in jobs]
        cache, hidden_PH = self._prefill(list(places))
        self._cache.add(cache, owners, [len(job.prompt_ids) for job in jobs])
        hidden_NH = hidden_PH[owners]
        self._hidden_BH = hidden_NH if self._hidden_BH is None else torch.cat([self._hidden_BH, hidden_NH])
        self.jobs += jobs

    @torch.no_grad()
    def advance(self) -> None:
        """One token for every row; those that ended or were cancelled leave."""
        self.jobs = [None if job is None or job.cancelled else job for job in self.jobs]
        if self.num_jobs:
            self._draw()
        self._leave(exactly=False)
        if self.jobs:
            self._forward([0 if job is None else job.tokens[-1] for job in self.jobs])

    def drop(self) -> list[Job]:
        """Give up all rows."""
        jobs = [job for job in self.jobs if job is not None]
        self.jobs, self._hidden_BH = [], None
        self._cache.clear()
        return jobs

    # ---- inside ------------------------------------------------------------------------------------------

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Any, Tensor]:
        """(cache, last hidden states [P, H]) of prompts padded on the left."""
        width = max(map(len, prompts))
        tokens_PS = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, ids in enumerate(prompts):
            tokens_PS[row, width - len(ids) :] = torch.tensor(ids)
        pads_P1 = torch.tensor([[width - len(ids)] for ids in prompts], device=self.device)
        columns_S = torch.arange(width, device=self.device)
        mask_PS = (columns_S >= pads_P1).long() if bool(pads_P1.any()) else None
        cache = prompt_cache(self.writer.model.config, width)
        output = self.writer.decoder(
            input_ids=tokens_PS.to(self.device),
            attention_mask=mask_PS,
            position_ids=(columns_S - pads_P1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        return cache, output.last_hidden_state[:, -1]

    def _draw(self) -> None:
        """Choose a token for every row."""
        assert self._hidden_BH is not None
        logits_BV = self.writer.head(self._hidden_BH).float()
        groups: dict[SamplingSettings, list[int]] = {}
        for row, job in enumerate(self.jobs):
            if job is not None:
                groups.setdefault(job.distribution, []).append(row)
        for settings, rows in groups.items():
            logits_NV = logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
            jobs = [job for row in rows if (job := self.jobs[row]) is not None]
            uniforms_N = torch.zeros(len(jobs), dtype=torch.float64)
            if settings.temperature:
                uniforms_N = torch.tensor([job.uniform() for job in jobs], dtype=torch.float64)
            tokens = choose(logits_NV, uniforms_N.to(self.device), settings)[0].tolist()
            logprobs = _logprobs(logits_NV, tokens, jobs)
            for row, job, token, logprob in zip(rows, jobs, tokens, logprobs, strict=True):
                if not job.take(token, logprob):
                    self.jobs[row] = None

    def _forward(self, tokens: list[int]) -> None:
        """Hidden states after one more token a row."""
        tokens_B = torch.tensor(tokens, device=self.device)
        cache = self._cache
        cache.make_room()
        positions_B1 = torch.tensor([[cache.end - start] for start in cache.starts], device=self.device)
        mask_BS = cache.mask(self.device, cache.end + 1)
        step = self.writer.step  # once: the writer may be closed while its last, cancelled rows are here
        if step is not None:
            self._hidden_BH, _ = step(tokens_B, positions_B1, mask_BS, cache.cache, None)
        else:
            output = self.writer.decoder(
                input_ids=tokens_B[:, None],
                attention_mask=mask_BS,
                position_ids=positions_B1,
                past_key_values=cache.cache,
                use_cache=True,
            )
            self._hidden_BH = output.last_hidden_state[:, -1]
        cache.stepped()

    def _leave(self, *, exactly: bool) -> None:
        """Rows that ended leave when the others are a number that products are made for, or `exactly` now."""
        alive = [row for row, job in enumerate(self.jobs) if job is not None]
        if not alive:
            self.drop()
            return
        kept = len(alive) if exactly else handy_rows(len(alive))
        # A row that ended stays at position 0: its positions would run on past the context, which some models refuse.
        self._cache.forget([row for row, job in enumerate(self.jobs) if job is None])
        if kept >= len(self.jobs):
            return
        # Rows from behind take the places that became free, so that few move.
        order = list(range(kept))
        behind = [row for row in alive if row >= kept]
        free = [row for row in order if self.jobs[row] is None]
        for place, row in zip(free, behind, strict=False):
            order[place] = row
        self.jobs = [self.jobs[row] for row in order]
        self._cache.keep(order)
        assert self._hidden_BH is not None
        self._hidden_BH = self._hidden_BH[order]


def _logprobs(logits_NV: Tensor, tokens: list[int], jobs: list[Job]) -> list[TokenLogprob | None]:
    """For the jobs that asked, each at the place of its row."""
    found: list[TokenLogprob | None] = [None] * len(jobs)
    rows = [row for row, job in enumerate(jobs) if job.num_logprobs is not None]
    if not rows:
        return found
    logprobs_NV = torch.log_softmax(logits_NV[rows], dim=-1)
    most = max(jobs[row].num_logprobs or 0 for row in rows)
    values_NK, ids_NK = logprobs_NV.topk(min(max(most, 1), logprobs_NV.shape[1]), dim=-1)
    for place, row in enumerate(rows):
        count = jobs[row].num_logprobs or 0
        top = tuple(zip(ids_NK[place, :count].tolist(), values_NK[place, :count].tolist(), strict=True))
        found[row] = TokenLogprob(tokens[row], float(logprobs_NV[place, tokens[row]]), top)
    return found
