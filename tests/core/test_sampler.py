"""Sampling: greedy equals transformers' own, draws follow the distribution, and batching changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from rlhf.core.backbone import Backbone
from rlhf.core.logprobs import token_logprobs
from rlhf.core.sampler import Request, Sampled, choose, sample
from rlhf.core.settings import LoraSettings, SamplingSettings
from rlhf.core.stopping import StopRule

LoadTiny = Callable[..., Backbone]
PROMPTS = (
    "the cat sat on a mat",
    "sun",
    "please tell one more tale of rain",
    "a red bird",
    "hello",
    "old man",
)


def requests_for(backbone: Backbone, prompts: tuple[str, ...] = PROMPTS) -> list[Request]:
    bos = backbone.codec.tokenizer.bos_token_id
    encode = backbone.codec.tokenizer.encode
    return [
        Request([bos, *encode(text, add_special_tokens=False)], cursor) for cursor, text in enumerate(prompts)
    ]


def draw(backbone: Backbone, requests: list[Request], model: Any = None, **settings: Any) -> list[Sampled]:
    options = {name: settings.pop(name) for name in ("seed", "max_batch_tokens") if name in settings}
    end = settings.pop("end_token_ids", backbone.codec.end_token_ids)
    return sample(
        model or backbone.model,
        requests,
        SamplingSettings(**{"max_completion_tokens": 20} | settings),
        end_token_ids=end,
        **{"seed": 0} | options,
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt_neox"])
def test_greedy_is_token_identical_to_generate(load_tiny: LoadTiny, architecture: str) -> None:
    backbone = load_tiny(architecture)
    requests = requests_for(backbone)
    # An end token that greedy decoding does meet, so that rows end at different times.
    free = [s.tokens for s in draw(backbone, requests, temperature=0, end_token_ids=[2])]
    end = max({t for row in free for t in row}, key=lambda t: sum(t in row for row in free))
    found = draw(backbone, requests, temperature=0, end_token_ids=[end])
    for request, sampled in zip(requests, found, strict=True):
        output = backbone.model.generate(
            torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=end,
            pad_token_id=0,
        )[0, len(request.prompt_ids) :]
        assert sampled.tokens == output.tolist()
        assert sampled.finished == (sampled.tokens[-1] == end)
    assert any(s.finished for s in found)


def test_a_completion_does_not_depend_on_what_is_sampled_beside_it(load_tiny: LoadTiny) -> None:
    """Alone, all at once (with eviction), in small batches, in another order: the same tokens."""
    backbone = load_tiny()
    # Four common tokens end a completion, so rows leave the batch all the time.
    options: dict[str, Any] = {"end_token_ids": list(range(100, 160)), "temperature": 1.5}
    requests = [Request(r.prompt_ids, r.cursor, g) for r in requests_for(backbone) for g in range(4)]
    together = draw(backbone, requests, **options)
    lengths = [len(s.tokens) for s in together]
    assert min(lengths) < 4
    assert max(lengths) > 8
    assert len({tuple(s.tokens) for s in together}) > 20
    small = draw(backbone, requests, max_batch_tokens=100, **options)
    backwards = draw(backbone, requests[::-1], **options)[::-1]
    alone = [draw(backbone, [request], **options)[0] for request in requests]
    for other in (small, backwards, alone):
        assert [s.tokens for s in other] == [s.tokens for s in together]
        assert [s.finished for s in other] == [s.finished for s in together]
        for one, two in zip(other, together, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
    assert [s.tokens for s in draw(backbone, requests, seed=1, **options)] != [s.tokens for s in together]


def test_every_completion_ends_at_its_first_end_token_or_at_the_limit(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    ends = set(range(100, 160))
    for sampled in draw(backbone, requests_for(backbone) * 3, end_token_ids=list(ends), temperature=1.5):
        assert not ends & set(sampled.tokens[:-1])
        assert sampled.finished == (sampled.tokens[-1] in ends)
        assert sampled.finished or len(sampled.tokens) == 20
        assert len(sampled.logprobs) == len(sampled.tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_a_whole_forward_pass(load_tiny: LoadTiny, temperature: float) -> None:
    backbone = load_tiny()
    role = backbone.add_role("policy", LoraSettings(r=4), seed=0)
    for parameter in role.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    requests = requests_for(backbone)
    drawn = draw(backbone, requests, backbone.merged("policy"), temperature=temperature)
    for request, sampled in zip(requests, drawn, strict=True):
        row, start = [*request.prompt_ids, *sampled.tokens], len(request.prompt_ids)
        with torch.no_grad():
            hidden = backbone.hidden("policy", torch.tensor([row]))[0, start - 1 : -1]
            expected, _ = token_logprobs(
                backbone.head,
                hidden,
                torch.tensor(sampled.tokens),
                temperature=temperature,
            )
        assert sampled.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_sampled_frequencies_follow_the_distribution(load_tiny: LoadTiny) -> None:
    """4 000 first tokens of one prompt against the model's own probabilities; rare tokens share one cell."""
    backbone = load_tiny()
    request = requests_for(backbone)[0]
    requests = [Request(request.prompt_ids, 0, g) for g in range(4000)]
    drawn = draw(backbone, requests, temperature=2.0, max_completion_tokens=1)
    with torch.no_grad():
        logits = backbone.model(torch.tensor([request.prompt_ids])).logits[0, -1]
    expected = (logits / 2.0).softmax(-1).double() * 4000
    found = torch.bincount(torch.tensor([s.tokens[0] for s in drawn]), minlength=len(expected)).double()
    common = expected >= 5
    assert common.sum() > 20
    cells = [torch.cat([x[common], x[~common].sum()[None]]).numpy() for x in (found, expected)]
    # A sound sampler falls below 1e-4 once in ten thousand seeds; this seed is fixed.
    assert chisquare(cells[0], cells[1] * cells[0].sum() / cells[1].sum()).pvalue > 1e-4


def test_choose_by_hand() -> None:
    # probabilities 1/8, 2/8, 5/8: u < 0.125 -> 0, u < 0.375 -> 1, else 2
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(5, 3)
    numbers = torch.tensor([0.0, 0.124, 0.126, 0.374, 0.376], dtype=torch.float64)
    tokens, logprobs = choose(logits, numbers, SamplingSettings())
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    assert logprobs.tolist() == pytest.approx([math.log(p) for p in (1 / 8, 1 / 8, 2 / 8, 2 / 8, 5 / 8)])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        # probabilities by rank: token 3 0.4, token 0 0.3, token 2 0.2, token 1 0.1
        ({"top_k": 1}, {3: 1.0}),
        ({"top_k": 3}, {3: 0.4 / 0.9, 0: 0.3 / 0.9, 2: 0.2 / 0.9}),
        ({"top_k": 9}, {3: 0.4, 0: 0.3, 2: 0.2, 1: 0.1}),
        # the mass before token 0 is 0.4 < 0.5, before token 2 it is 0.7: two are kept
        ({"top_p": 0.5}, {3: 0.4 / 0.7, 0: 0.3 / 0.7}),
        ({"top_p": 0.01}, {3: 1.0}),
        ({"top_p": 0.95, "top_k": 2}, {3: 0.4 / 0.7, 0: 0.3 / 0.7}),
    ],
)
def test_top_k_and_top_p_keep_only_what_they_say(settings: dict[str, Any], kept: dict[int, float]) -> None:
    logits = torch.tensor([0.3, 0.1, 0.2, 0.4]).log().expand(1000, 4)
    numbers = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens, logprobs = choose(logits, numbers, SamplingSettings(**settings))
    assert set(tokens.tolist()) == set(kept)
    for token, probability in kept.items():
        drawn = tokens == token
        assert drawn.double().mean().item() == pytest.approx(probability, abs=2e-3)
        assert logprobs[drawn].exp().tolist() == pytest.approx([probability] * int(drawn.sum()), abs=1e-5)


def test_a_check_between_tokens_and_the_count_of_done_rows(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    steps, done = [], []
    sample(
        backbone.model,
        requests_for(backbone),
        SamplingSettings(max_completion_tokens=5, temperature=0),
        end_token_ids=[2],
        seed=0,
        max_batch_tokens=60,
        on_step=lambda: steps.append(1),
        on_done=done.append,
    )
    assert sum(done) == len(PROMPTS)
    assert len(done) > 1
    assert len(steps) == 5 * len(done)


# ---- what the sampler shares and keeps -------------------------------------------------------------------------


def policy_of(backbone: Backbone) -> Any:
    """The model of a policy whose upper half has learned something, behind a trunk that is split off."""
    role = backbone.add_role("policy", LoraSettings(r=4), seed=0)
    for parameter in role.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    assert backbone.enable_trunk(64).startswith("trunk cache on")
    return backbone.merged("policy")


def test_several_completions_of_a_prompt_share_its_prefix(load_tiny: LoadTiny) -> None:
    """Each distinct prompt is computed once, whatever its cursors; the completions are those of separate draws."""
    backbone = load_tiny()
    prompts = [r.prompt_ids for r in requests_for(backbone)[:3]]
    requests = [Request(prompts[i % 3], cursor=i, sample=g) for i in range(4) for g in range(5)]
    seen: list[tuple[int, int]] = []
    layer = backbone.model.get_decoder().layers[0]
    hook = layer.register_forward_hook(lambda m, inputs, out: seen.append(tuple(inputs[0].shape[:2])))
    together = draw(backbone, requests, end_token_ids=[2])
    hook.remove()
    assert seen[0] == (3, max(len(ids) for ids in prompts))
    assert seen[1] == (20, 1)
    assert len({tuple(s.tokens) for s in together}) == 20
    alone = [draw(backbone, [request], end_token_ids=[2])[0] for request in requests]
    assert [s.tokens for s in alone] == [s.tokens for s in together]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_neox"])
def test_captured_states_and_readings_are_those_of_a_whole_pass(
    load_tiny: LoadTiny, architecture: str
) -> None:
    """With prompts of mixed length and rows that leave on the way; the last token's state is among them."""
    backbone = load_tiny(architecture)
    model = policy_of(backbone)
    weights_H = torch.linspace(-1, 1, backbone.hidden_size)
    requests = [Request(r.prompt_ids, r.cursor, g) for r in requests_for(backbone) for g in range(3)]
    widths: list[int] = []
    hook = (
        model.get_decoder()
        .layers[-1]
        .register_forward_hook(lambda m, inputs, out: widths.append(len(inputs[0])))
    )
    drawn = sample(
        model,
        requests,
        SamplingSettings(max_completion_tokens=12, temperature=1.5),
        end_token_ids=list(range(100, 135)),
        seed=0,
        capture_layer=backbone.first_top_layer,
        read=lambda hidden_BH: hidden_BH @ weights_H,
    )
    hook.remove()
    assert len(set(widths)) > 2, "rows have left the batch"
    assert {s.finished for s in drawn} == {True, False}
    for request, sampled in zip(requests, drawn, strict=True):
        row = torch.tensor([[*request.prompt_ids, *sampled.tokens]])
        assert sampled.trunk_SH is not None
        torch.testing.assert_close(sampled.trunk_SH, backbone.trunk(row)[0], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            hidden_SH = backbone.hidden("policy", row)[0, len(request.prompt_ids) - 1 : -1]
        assert sampled.readings == pytest.approx((hidden_SH @ weights_H).tolist(), abs=1e-3)
    assert not any(m._forward_hooks for m in model.modules()), "the sampler leaves no hook behind"


def test_what_is_kept_changes_nothing_that_is_drawn(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    model, requests = policy_of(backbone), requests_for(backbone)
    settings: dict[str, Any] = {"end_token_ids": list(range(100, 140)), "seed": 0}
    plain = sample(model, requests, SamplingSettings(max_completion_tokens=9), **settings)
    kept = sample(
        model,
        requests,
        SamplingSettings(max_completion_tokens=9),
        **settings,
        capture_layer=2,
        read=lambda hidden_BH: hidden_BH[:, 0],
    )
    assert [s.tokens for s in kept] == [s.tokens for s in plain]
    assert [s.logprobs for s in kept] == [s.logprobs for s in plain]
    assert all(s.trunk_SH is None and s.readings == [] for s in plain)


def test_stop_strings_end_rows_where_they_are_complete(load_tiny: LoadTiny) -> None:
    """The rows are those without stop strings, up to the token that completes one."""
    backbone = load_tiny()
    requests = [Request(r.prompt_ids, r.cursor, g) for r in requests_for(backbone) for g in range(4)]
    free = draw(backbone, requests, end_token_ids=[2])
    decode = backbone.codec.tokenizer.decode
    texts = [decode(s.tokens) for s in free]
    pairs = [text[i : i + 2] for text in texts for i in range(3, len(text) - 1) if text[i : i + 2].isascii()]
    strings = (max(sorted(set(pairs)), key=pairs.count), pairs[0])
    rule = StopRule(backbone.codec, SamplingSettings(stop_strings=strings))
    found = sample(
        backbone.model,
        requests,
        SamplingSettings(max_completion_tokens=20, stop_strings=strings),
        end_token_ids=[2],
        ended_by_text=rule.ended_by_text,
        seed=0,
    )
    ended = 0
    for whole, sampled in zip(free, found, strict=True):
        counts = range(1, len(whole.tokens) + 1)
        hits = [n for n in counts if any(s in decode(whole.tokens[:n]) for s in strings)]
        assert sampled.tokens == whole.tokens[: hits[0] if hits else None]
        assert sampled.logprobs == pytest.approx(whole.logprobs[: len(sampled.tokens)], abs=1e-4)
        assert sampled.finished == (bool(hits) or whole.finished)
        assert not any(s in rule.text(sampled.tokens) for s in strings)
        ended += bool(hits)
    assert 0 < ended < len(requests)


def test_neighbours_that_stop_or_share_a_prompt_change_nothing(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    model, requests = policy_of(backbone), requests_for(backbone)
    ends = {"end_token_ids": list(range(100, 160)), "temperature": 1.5}
    beside = [Request(requests[1].prompt_ids, cursor=50 + g) for g in range(9)]
    for request in requests[:3]:
        alone = draw(backbone, [request], model, **ends)[0]
        crowded = draw(backbone, [*beside, request, *requests[3:]], model, **ends)[len(beside)]
        assert crowded.tokens == alone.tokens
        assert crowded.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
