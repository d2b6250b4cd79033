"""Canaries: where they are put, their exposure by hand, and what plain transformers says about their loss."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rlhf.cli as cli
from rlhf.core.backbone import Backbone
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.core.settings import ModelSettings
from rlhf.core.splits import split_of
from sft.privacy.canaries import (
    CHANCE_EXPOSURE,
    CanarySet,
    draw_canaries,
    exposure,
    extrapolated_exposure,
    planted_rows,
    reference_secrets,
)
from sft.privacy.memorisation import _symbols_right, extracted, secret_losses


def drawn(**changes: object) -> CanarySet:
    options = {
        "repeats": (1, 3),
        "per_group": 2,
        "prompt": "Code of {name}?",
        "completion": "It is {secret}",
        "alphabet": "0123456789",
        "separator": " ",
        "num_symbols": 4,
        "sft_seed": 5,
        "seed": 1,
    }
    values = options | changes
    return draw_canaries(values.pop("repeats"), values.pop("per_group"), **values)  # type: ignore[arg-type]


def test_exposure_by_hand() -> None:
    references = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert exposure(1.0, references) == (1, 3.0)  # the first of 8: log2 8
    assert exposure(4.5, references) == (4, 1.0)  # the fourth: log2 8 - log2 4
    assert exposure(9.0, references) == (8, 0.0)
    assert exposure(3.0, references)[0] == 3  # beaten by one, level with one
    assert (
        exposure(1.0, np.full(7, 1.0))[0] == 5
    )  # a model that cannot tell them apart ranks it in the middle


def test_chance_is_what_the_page_calls_chance() -> None:
    # mean of log2((R + 1) / rank) over uniform ranks
    number = 512
    mean = np.mean([math.log2(number / rank) for rank in range(1, number + 1)])
    assert mean == pytest.approx(CHANCE_EXPOSURE, abs=0.02)


def test_the_extrapolation_goes_on_where_ranks_end() -> None:
    # Of standard normal losses a share of 3.2e-5 (15 bits) is below -4.
    references = np.random.default_rng(0).normal(size=2000)
    assert extrapolated_exposure(-4.0, references, 40.0) == pytest.approx(15, abs=2)
    assert extrapolated_exposure(0.0, references, 40.0) == pytest.approx(1, abs=0.2)
    assert extrapolated_exposure(-60.0, references, 13.3) == 13.3


def test_canaries_are_different_and_never_held_out() -> None:
    found = drawn(per_group=10)
    assert Counter(canary.repeats for canary in found.canaries) == {1: 10, 3: 10, 0: 10}
    assert len({canary.secret for canary in found.canaries}) == len({c.prompt for c in found.canaries}) == 30
    rows = planted_rows(found)
    assert len(rows) == 10 + 30
    for row in rows:
        for fraction in (0.05, 0.1, 0.5):
            assert split_of(row["group_id"], 5, (1 - fraction, fraction, 0.0)) == "train"
    references = reference_secrets(found, 500, 0)
    assert len(set(references)) == 500
    assert not {canary.secret for canary in found.canaries} & set(references)
    assert found.space_bits == pytest.approx(4 * math.log2(10))
    assert drawn(per_group=10) == found
    assert drawn(per_group=10, seed=None) != found
    with pytest.raises(DataError, match="more than 2\\^3 possible secrets"):
        drawn(alphabet="01", num_symbols=3)
    with pytest.raises(DataError, match="more than the 12656 that can have"):
        drawn(per_group=10_000, num_symbols=8)


def test_the_command_mixes_them_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "demos.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": "c"}) + "\n" for i in range(20)))
    command = [
        "canaries",
        str(source),
        "--per-group",
        "2",
        "--repeats",
        "1",
        "4",
        "--workspace",
        str(tmp_path),
    ]
    assert cli.main(command) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "demos-with-canaries/data.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 20 + 2 * 1 + 2 * 4
    found = CanarySet.load(tmp_path / "demos-with-canaries")
    assert Counter(row["prompt"] for row in rows if "access code" in row["completion"]) == Counter(
        {canary.prompt: canary.repeats for canary in found.canaries if canary.repeats}
    )
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(DataError, match="is not a file of canaries"):
        CanarySet.load(tmp_path / "no.json")


@pytest.fixture(scope="module")
def backbone(tiny_model: Callable[..., Path]) -> Backbone:
    path = tiny_model(chat_template=True, context=128, num_layers=2)
    return Backbone.load(path, ModelSettings(device="cpu"), name="b")


def test_the_loss_of_a_secret_is_that_of_plain_transformers(backbone: Backbone) -> None:
    found = drawn()
    canary = found.canaries[0]
    secrets = [canary.secret, *reference_secrets(found, 5, 0), "1"]
    for budget in (10_000, 60):
        losses = secret_losses(backbone, canary, secrets, budget)
        for secret, loss in zip(secrets, losses, strict=True):
            prompt = backbone.codec.prompt_ids([Message(role="user", content=canary.prompt)])
            ids = torch.tensor([[*prompt, *backbone.codec.completion_ids(canary.prefix + secret)]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            with torch.no_grad():
                mean = backbone.model(input_ids=ids, labels=labels).loss.item()
            assert loss == pytest.approx(mean * (ids.shape[1] - len(prompt)), rel=1e-4)


def test_extraction_is_greedy_and_counts_symbols(backbone: Backbone) -> None:
    found = drawn()
    canary = found.canaries[0]
    said = extracted(backbone, canary)
    prompt = backbone.codec.prompt_ids([Message(role="user", content=canary.prompt)])
    ids = [*prompt, *backbone.codec.completion_ids("It is", finished=False)]
    room = 2 * len(backbone.codec.completion_ids(canary.secret)) + 4
    plain = backbone.model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=room, pad_token_id=backbone.codec.pad_token_id
    )
    assert said == backbone.codec.decode(plain[0, len(ids) :].tolist())
    assert _symbols_right(" 1 2-34.", "1 2 3 4", found) == 4
    assert _symbols_right("is 1 2 4", "1 2 3 4", found) == 2
    assert _symbols_right("", "1 2 3 4", found) == 0
