"""Completions with the log-probability of every sampled token.

Prompts of like length are decoded together (padded on the left within a batch), several completions of a
prompt share its prefix, rows leave the batch as they end, and only the last position's logits ever exist. The
uniform number behind each token is a function of (seed, cursor, sample, position): see `rlhf.core.randomness`.

On the way the sampler can keep what PPO would otherwise compute again: the hidden states below the lowest
adapted layer (`capture_layer`) and a scalar head's reading of the last hidden states (`read`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.decode_step import DecodeStep, decode_step
from rlhf.core.decoder import decoder_layers
from rlhf.core.few_rows import handy_rows
from rlhf.core.kv_cache import key_value_cache
from rlhf.core.packed import packed
from rlhf.core.randomness import uniforms
from rlhf.core.reference_engine import generate
from rlhf.core.settings import SamplingSettings
from rlhf.core.static_step import StaticStep, static_step
from rlhf.core.virtual_tokens import has_virtual_tokens
from rlhf.core.vocabulary import OutputHead

# Places of the vocabulary that are summed before a token is looked for among them.
SEARCH_BLOCK = 64


@dataclass(frozen=True)
class Request:
    """One completion to draw. cursor: the prompt's place in the run's stream of prompts; sample: 0..G-1."""

    prompt_ids: Sequence[int]
    cursor: int
    sample: int = 0


@dataclass
class Sampled:
    """tokens: the completion, its end token included where `finished`; logprobs: of the sampled distribution.

    trunk_SH: with `capture_layer`, the output [prompt + completion, H] of the layer below it. readings: with
    `read`, one number a token, from the hidden state that predicts it.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    trunk_SH: Tensor | None = None
    readings: list[float] = field(default_factory=list)


def plan_batches(
    requests: Sequence[Request], settings: SamplingSettings, max_batch_tokens: int
) -> list[list[int]]:
    """Places of the requests that are decoded together: of like length, at most max_batch_tokens a batch."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
    batches: list[list[int]] = []
    for place in order:
        longest = len(requests[place].prompt_ids) + settings.max_completion_tokens
        if batches and (len(batches[-1]) + 1) * longest <= max_batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@torch.no_grad()
def sample(
    model: Any,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    end_token_ids: Sequence[int],
    seed: int,
    ended_by_text: Callable[[Sequence[int]], bool] | None = None,
    max_batch_tokens: int = 65_536,
    capture_layer: int | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[Sampled]:
    """Draw one completion per request, in the order of the requests.

    model: a causal LM of transformers (what `Backbone.sampling_model` gives).
    ended_by_text: True for the tokens of a completion that ends here though no end token has come (stop strings).
    max_batch_tokens: rows x (prompt + completion) tokens decoded at once; bounds the key/value cache.
    read: maps hidden states [B, H] to one number a row, [B]. With `settings.engine` transformers neither trunk
    states nor readings are kept.
    on_step is called after each token (a place to notice signals), on_done with the number of rows of each
    finished batch.
    """
    results = [Sampled() for _ in requests]
    batches = plan_batches(requests, settings, max_batch_tokens)
    # Virtual tokens are known to the peft model's own generate only, which loses count of positions behind padding.
    prompted = has_virtual_tokens(getattr(model, "active_peft_config", None))
    if prompted:
        batches = [part for batch in batches for part in _of_one_length(batch, requests)]
    for places in batches:
        batch = [requests[i] for i in places]
        if settings.engine == "transformers" or prompted:
            found = _by_transformers(model, batch, settings, end_token_ids, seed, ended_by_text, on_step)
        else:
            found = _Decoding(
                model,
                batch,
                settings,
                end_token_ids,
                seed,
                ended_by_text=ended_by_text,
                capture_layer=capture_layer,
                read=read,
            ).run(on_step)
        for place, result in zip(places, found, strict=True):
            results[place] = result
        on_done(len(places))
    return results


def _of_one_length(places: Sequence[int], requests: Sequence[Request]) -> list[list[int]]:
    """The places in groups whose prompts have as many tokens."""
    groups: dict[int, list[int]] = {}
    for place in places:
        groups.setdefault(len(requests[place].prompt_ids), []).append(place)
    return list(groups.values())


def _by_transformers(
    model: Any,
    requests: list[Request],
    settings: SamplingSettings,
    end_token_ids: Sequence[int],
    seed: int,
    ended_by_text: Callable[[Sequence[int]], bool] | None,
    on_step: Callable[[], None],
) -> list[Sampled]:
    """One batch by the reference engine, which draws each token with the same uniform number."""
    cursors_B = torch.tensor([r.cursor for r in requests], device=model.device)
    samples_B = torch.tensor([r.sample for r in requests], device=model.device)

    def draw(logits_BV: Tensor, position: int) -> tuple[Tensor, Tensor]:
        uniforms_B = uniforms(seed, cursors_B, samples_B, torch.full_like(cursors_B, position))
        return choose(logits_BV, uniforms_B, settings)

    generated = generate(
        model,
        [request.prompt_ids for request in requests],
        settings.max_completion_tokens,
        end_token_ids=end_token_ids,
        draw=draw,
        ended_by_text=ended_by_text,
        on_step=on_step,
    )
    return [Sampled(*row) for row in generated]


class _Decoding:
    """One batch: prefill of the distinct prompts, then a token a step for the rows that are still alive."""

    def __init__(
        self,
        model: Any,
        requests: list[Request],
        settings: SamplingSettings,
        end_token_ids: Sequence[int],
        seed: int,
        *,
        ended_by_text: Callable[[Sequence[int]], bool] | None,
        capture_layer: int | None,
        read: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.requests, self.settings, self.seed, self.read = requests, settings, seed, read
        self.ended_by_text = ended_by_text
        self.model, self.device = model, model.device
        self.decoder, self.head = model.get_decoder(), OutputHead.of(model)
        self.results = [Sampled() for _ in requests]
        self.width = max(len(request.prompt_ids) for request in requests)
        self.cache = key_value_cache(model.config, self.width + settings.max_completion_tokens)
        self.ends_E = torch.tensor(list(end_token_ids), dtype=torch.int64, device=self.device)
        self.capture_layer = capture_layer
        self._step: DecodeStep | StaticStep | None = None
        self._captured: Tensor | None = None
        self._states: Tensor | None = None

    # ---- the loop ----------------------------------------------------------------------------------------

    def run(self, on_step: Callable[[], None]) -> list[Sampled]:
        hook = None
        if self.capture_layer is not None:
            layer = decoder_layers(self.decoder)[self.capture_layer - 1]
            hook = layer.register_forward_hook(self._capture)
        try:
            prefilled = self._prefill()
            self._step = static_step(self.model) or decode_step(self.model)
            # With a step of its own the decoder's weights are arranged there.
            with packed(self.model if self._step is None else self.head.linear):
                self._decode(*prefilled, on_step)
        finally:
            if hook is not None:
                hook.remove()
        return self.results

    def _decode(
        self,
        hidden_BH: Tensor,
        mask_BS: Tensor | None,
        positions_B1: Tensor,
        on_step: Callable[[], None],
    ) -> None:
        device, limit = self.device, self.settings.max_completion_tokens
        rows_B = torch.arange(len(self.requests), device=device)
        alive_B = torch.ones_like(rows_B, dtype=torch.bool)
        uniforms_BT = self._uniforms()
        drawn: list[Tensor] = []
        for position in range(limit):
            uniforms_B = uniforms_BT[rows_B, position]
            next_B, logprobs_B = choose(self.head(hidden_BH).float(), uniforms_B, self.settings)
            ended_B = torch.isin(next_B, self.ends_E)
            columns = [rows_B, next_B, logprobs_B, ended_B, alive_B]
            if self.read is not None:
                columns.append(self.read(hidden_BH))
            drawn.append(torch.stack([column.double() for column in columns], dim=1))
            alive_B = alive_B & ~ended_B
            if self.ended_by_text is not None:
                alive_B = alive_B & ~self._stopped(drawn, len(rows_B))
            on_step()
            num_alive = int(alive_B.sum())
            last = num_alive == 0 or position + 1 == limit
            if last and self.capture_layer is None:
                break
            # A row's last token goes through the layers too: its state is where a reward is read.
            positions_B1 = positions_B1 + 1
            if mask_BS is not None:
                mask_BS = torch.cat([mask_BS, mask_BS.new_ones(mask_BS.shape[0], 1)], dim=1)
            hidden_BH = self._advance(next_B, mask_BS, positions_B1)
            self._keep(rows_B, self.width + position)
            if last:
                break
            # Finished rows leave when the others are a number that products are made for.
            step = self._step if isinstance(self._step, StaticStep) else None
            num_kept = step.handy_rows(num_alive) if step else handy_rows(num_alive)
            if num_kept < len(rows_B):
                keep = _closed_ranks(alive_B, num_kept)
                if step:
                    step.keep_rows(self.cache, keep)
                else:
                    self.cache.batch_select_indices(keep)
                mask_BS = mask_BS[keep] if mask_BS is not None else None
                hidden_BH, positions_B1, rows_B = hidden_BH[keep], positions_B1[keep], rows_B[keep]
                alive_B = alive_B[keep]
        self._collect(drawn)

    def _uniforms(self) -> Tensor:
        """[B, T] the numbers behind all tokens of the batch."""
        steps = self.settings.max_completion_tokens
        counters = [
            (request.cursor, request.sample, position)
            for request in self.requests
            for position in range(steps)
        ]
        cursors_N, samples_N, positions_N = torch.tensor(counters, device=self.device).T
        return uniforms(self.seed, cursors_N, samples_N, positions_N).view(len(self.requests), steps)

    def _prefill(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Last hidden states [B, H], attention mask (None where nothing is padded), last positions [B, 1]."""
        # Completions of one prompt share its prefix: each distinct prompt is computed once.
        places: dict[tuple[int, ...], int] = {}
        owners = [places.setdefault(tuple(r.prompt_ids), len(places)) for r in self.requests]
        prompts, device, width = list(places), self.device, self.width
        tokens_PS = torch.zeros(len(prompts), width, dtype=torch.int64)
        for i, ids in enumerate(prompts):
            tokens_PS[i, width - len(ids) :] = torch.tensor(ids)
        pads_P = torch.tensor([width - len(ids) for ids in prompts], device=device)
        columns_S = torch.arange(width, device=device)
        positions_PS = (columns_S - pads_P[:, None]).clamp(min=0)
        # Without padding no mask is needed, which lets the attention kernel take its fast path.
        mask_PS = (columns_S >= pads_P[:, None]).long() if bool(pads_P.any()) else None
        hidden_PH = self._forward(tokens_PS.to(device), mask_PS, positions_PS)
        owner_B = torch.tensor(owners, device=device)
        if len(prompts) < len(owners):
            self.cache.batch_select_indices(owner_B)
        if self._captured is not None:
            capacity = width + self.settings.max_completion_tokens
            self._states = self._captured.new_empty(len(owners), capacity, self._captured.shape[-1])
            self._states[:, :width] = self._captured[owner_B]
        mask_BS = mask_PS[owner_B] if mask_PS is not None else None
        return hidden_PH[owner_B], mask_BS, positions_PS[owner_B, -1:]

    def _advance(self, tokens_B: Tensor, mask_BS: Tensor | None, positions_B1: Tensor) -> Tensor:
        """Final hidden states [B, H] after one more token a row."""
        if self._step is None:
            return self._forward(tokens_B[:, None], mask_BS, positions_B1)
        hidden_BH, captured_BH = self._step(tokens_B, positions_B1, mask_BS, self.cache, self.capture_layer)
        self._captured = captured_BH[:, None] if captured_BH is not None else None
        return hidden_BH

    def _forward(self, tokens_BS: Tensor, mask_BS: Tensor | None, positions_BS: Tensor) -> Tensor:
        """Final hidden states [B, H] of the last position."""
        output = self.decoder(
            input_ids=tokens_BS,
            attention_mask=mask_BS,
            position_ids=positions_BS,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    # ---- what is kept ------------------------------------------------------------------------------------

    def _capture(self, module: Any, inputs: Any, output: Any) -> None:
        self._captured = output[0] if isinstance(output, tuple) else output

    def _keep(self, rows_B: Tensor, column: int) -> None:
        if self._states is not None:
            assert self._captured is not None
            self._states[rows_B, column] = self._captured[:, -1]

    def _stopped(self, drawn: list[Tensor], num_rows: int) -> Tensor:
        """[B] True where the text of a row now holds a stop string."""
        ended_by_text = self.ended_by_text
        assert ended_by_text is not None
        row_numbers = drawn[-1][:, 0].long().tolist()
        tokens = drawn[-1][:, 1].long().tolist()
        hits = []
        for row, token, alive in zip(row_numbers, tokens, drawn[-1][:, 4].tolist(), strict=True):
            result = self.results[row]
            if alive:
                result.tokens.append(token)
            hits.append(bool(alive) and ended_by_text(result.tokens))
            result.finished |= hits[-1]
        return torch.tensor(hits, device=self.device)

    def _collect(self, drawn: list[Tensor]) -> None:
        """Fill the results from what every step drew; rows that had ended before a step are passed over."""
        for result in self.results:
            result.tokens = []
        for row, token, logprob, ended, alive, *reading in torch.cat(drawn).cpu().tolist():
            if alive:
                result = self.results[int(row)]
                result.tokens.append(int(token))
                result.logprobs.append(logprob)
                result.readings += reading
                result.finished |= bool(ended)
        if self._states is not None:
            for request, result, states_SH in zip(self.requests, self.results, self._states, strict=True):
                first = self.width - len(request.prompt_ids)
                result.trunk_SH = states_SH[first : self.width + len(result.tokens)].clone()


def _closed_ranks(alive_B: Tensor, num_kept: int) -> Tensor:
    """`num_kept` rows, all that are alive among them: those behind move into places that became free."""
    keep = torch.arange(num_kept, device=alive_B.device)
    behind = num_kept + alive_B[num_kept:].nonzero().squeeze(1)
    free = (~alive_B[:num_kept]).nonzero().squeeze(1)
    keep[free[: len(behind)]] = behind
    return keep


def choose(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at the row's uniform number.

    Returns token ids [B] and their log-probability [B] under the distribution that was sampled from, that is
    after temperature, top-k and top-p. Temperature 0 takes the most probable token (log-probability 0).
    """
    if settings.temperature == 0:
        return logits_BV.argmax(-1), logits_BV.new_zeros(logits_BV.shape[0])
    if settings.temperature != 1:
        logits_BV = logits_BV / settings.temperature
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    if settings.top_k or settings.top_p < 1:
        logprobs_BV = _filtered(logprobs_BV, settings)
    next_B = _inverted(logprobs_BV.exp(), uniforms_B)
    return next_B, logprobs_BV.gather(1, next_B[:, None]).squeeze(1)


def _inverted(p_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The places [B] at which the cumulated numbers of each row pass its uniform number's share of their sum.

    The block is found first, then the place in it: cumulating a whole vocabulary takes ten times longer. Summed in
    float64: in fp32 the tail of a large vocabulary would be lost in rounding.
    """
    short = -p_BV.shape[1] % SEARCH_BLOCK
    blocks_BNS = (nn.functional.pad(p_BV, (0, short)) if short else p_BV).unflatten(1, (-1, SEARCH_BLOCK))
    ends_BN = blocks_BNS.sum(-1, dtype=torch.float64).cumsum(-1)
    targets_B1 = uniforms_B[:, None] * ends_BN[:, -1:]
    block_B1 = _first_beyond(targets_B1, ends_BN)
    begins_B1 = nn.functional.pad(ends_BN, (1, 0)).gather(1, block_B1)
    chosen_BS = blocks_BNS[torch.arange(len(p_BV), device=p_BV.device), block_B1.squeeze(1)]
    ends_BS = begins_B1 + chosen_BS.cumsum(-1, dtype=torch.float64)
    return (block_B1 * SEARCH_BLOCK + _first_beyond(targets_B1, ends_BS)).squeeze(1)


def _first_beyond(targets_B1: Tensor, ends_BN: Tensor) -> Tensor:
    """[B, 1] the first place that ends beyond its target; where rounding leaves none, the last that is not empty."""
    return ((ends_BN <= targets_B1) & (ends_BN < ends_BN[:, -1:])).sum(1, keepdim=True)


def _filtered(logprobs_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Log-probabilities renormalised over the tokens that top-k and top-p keep."""
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True)
    keep_BV = torch.ones_like(sorted_BV, dtype=torch.bool)
    if settings.top_k:
        keep_BV[:, settings.top_k :] = False
    if settings.top_p < 1:
        # A token stays while the mass before it is below top_p, so the first one always does.
        before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
        keep_BV &= before_BV < settings.top_p
    kept_BV = torch.zeros_like(keep_BV).scatter(1, order_BV, keep_BV)
    return torch.log_softmax(logprobs_BV.masked_fill(~kept_BV, float("-inf")), dim=-1)
