"""transformers' generate as the reference: it draws the very tokens that our sampler draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from rlhf.core.backbone import Backbone
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.settings import LoraSettings, SamplingSettings
from rlhf.core.stopping import StopRule

LoadTiny = Callable[..., Backbone]
ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma2", "phi3", "gpt2", "gpt_neox")
LENGTHS = (3, 14, 7, 14, 1, 20)


def requests_for(backbone: Backbone, samples: int = 2) -> list[Request]:
    """Prompts of mixed length, some beyond the sliding windows, each more than once."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, backbone.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Request(ids, cursor, g) for cursor, ids in enumerate(prompts) for g in range(samples)]


def draw(backbone: Backbone, engine: str, model: Any = None, **settings: Any) -> list[Sampled]:
    chosen = SamplingSettings.model_validate({"max_completion_tokens": 12, "engine": engine} | settings)
    stop = StopRule(backbone.codec, chosen)
    return sample(
        model or backbone.model,
        requests_for(backbone),
        chosen,
        end_token_ids=stop.token_ids,
        ended_by_text=stop.ended_by_text,
        seed=3,
        max_batch_tokens=200,
    )


def assert_equal(ours: list[Sampled], theirs: list[Sampled]) -> None:
    assert [row.tokens for row in theirs] == [row.tokens for row in ours]
    assert [row.finished for row in theirs] == [row.finished for row in ours]
    for one, two in zip(ours, theirs, strict=True):
        assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        assert two.trunk_SH is None
        assert two.readings == []


def stop_tokens_of(rows: list[Sampled], codec: Any) -> list[str]:
    """Two tokens, by their names, that end these rows at as many different places as possible."""
    places = {
        token: {row.tokens.index(token) if token in row.tokens else -1 for row in rows}
        for token in sorted({t for row in rows for t in row.tokens})
    }
    return codec.tokenizer.convert_ids_to_tokens(sorted(places, key=lambda t: -len(places[t]))[:2])


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {}, {"temperature": 1.4, "top_k": 50, "top_p": 0.9}]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_engines_give_the_same_tokens(
    load_tiny: LoadTiny, architecture: str, settings: dict[str, Any]
) -> None:
    backbone = load_tiny(architecture)
    free = draw(backbone, "native", **settings)
    assert_equal(free, draw(backbone, "transformers", **settings))
    stops = {"stop_tokens": stop_tokens_of(free, backbone.codec)}
    ended = draw(backbone, "native", **settings, **stops)
    assert len({len(row.tokens) for row in ended}) > 1
    assert any(row.finished for row in ended)
    assert_equal(ended, draw(backbone, "transformers", **settings, **stops))


def test_a_trained_role_and_stop_strings(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    role = backbone.add_role("policy", LoraSettings(r=4), seed=0)
    for parameter in role.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    model = backbone.merged("policy")
    texts = [backbone.codec.decode(row.tokens) for row in draw(backbone, "native", model)]
    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1) if text[i : i + 2].isascii()]
    stops = {"stop_strings": (pairs[0], max(set(pairs), key=pairs.count))}
    ours = draw(backbone, "native", model, **stops)
    assert any(row.finished and row.tokens[-1] not in backbone.codec.end_token_ids for row in ours)
    assert not all(row.finished for row in ours)
    assert_equal(ours, draw(backbone, "transformers", model, **stops))


def test_generation_settings_of_the_model_change_nothing_and_come_back(load_tiny: LoadTiny) -> None:
    """They may hold penalties and forbidden tokens, which belong to chatting and not to a policy."""
    backbone = load_tiny()
    ours = draw(backbone, "native")
    theirs = GenerationConfig(
        do_sample=True,
        temperature=0.1,
        repetition_penalty=5.0,
        suppress_tokens=list(range(5, 150)),
        max_length=4,
    )
    backbone.model.generation_config = theirs
    assert_equal(ours, draw(backbone, "transformers"))
    assert backbone.model.generation_config is theirs


def test_a_check_after_each_token_may_end_it(load_tiny: LoadTiny) -> None:
    backbone, steps = load_tiny(), []
    theirs = backbone.model.generation_config

    def check() -> None:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(
            backbone.model,
            requests_for(backbone),
            SamplingSettings(engine="transformers", max_completion_tokens=12),
            end_token_ids=backbone.codec.end_token_ids,
            seed=0,
            on_step=check,
        )
    assert len(steps) == 4
    assert backbone.model.generation_config is theirs
