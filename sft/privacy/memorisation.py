"""`rlhf memorisation`: how far a model gives away the canaries that it was trained on.

For each canary: its exposure among secrets that the model never saw, and whether greedy decoding from the question and
the beginning of the answer gives the secret away. OUT/memorisation.html, OUT/memorisation.json.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.core.backbone import REFERENCE, Backbone, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.files import write_json, write_text
from rlhf.core.guards import TokenBudget
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.logprobs import token_logprobs
from rlhf.core.metrics import finite, progress
from rlhf.core.records import Message
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.stats import bootstrap_mean
from sft.privacy.canaries import (
    CHANCE_EXPOSURE,
    Canary,
    CanarySet,
    exposure,
    extrapolated_exposure,
    reference_secrets,
)
from sft.privacy.config import MemorisationConfig
from sft.privacy.page import page

STAGE = "memorisation"


def run(config: MemorisationConfig, launch: Launch) -> None:
    """Measure the model and, where one is given, the model before training; write the page."""
    require_one_process(STAGE)
    model_path = find_model(required(config.model_path, "model-path", "the trained model"), launch)
    what = "canaries.json of `rlhf canaries`"
    canaries_path = find_path(required(config.canaries, "canaries", what), launch)
    baseline = find_model(config.baseline, launch) if config.baseline else None
    found = CanarySet.load(canaries_path)
    out = launch.out or Workspace(launch.workspace).runs / STAGE
    given = {"model": model_path, "baseline": baseline}
    parents = {"canaries": canaries_path}
    parents |= {name: Path(path) for name, path in given.items() if path and Path(path).exists()}
    # A measurement that was killed has nothing to continue: it is made again.
    with Run.open(
        out,
        stage=STAGE,
        settings=config,
        launch=replace(launch, resume=True),
        parents=parents,
        seed=config.seed,
    ) as record:
        if record.finished:
            print(f"memorisation: {out} is already finished")
            return
        backbone = Backbone.load(model_path, config.model, name=model_name(model_path, launch))
        record.begin()
        result = measure(backbone, found, config)
        result["model"] = backbone.name
        if baseline is not None:
            del backbone
            before = Backbone.load(baseline, config.model, name=model_name(baseline, launch))
            result["baseline"] = measure(before, found, config) | {"model": before.name}
        result = finite(result)
        write_json(record.path / "memorisation.json", result)
        write_text(record.path / "memorisation.html", page(result))
        record.finish(_headline(result))
    print(f"memorisation: {told(result)}; page at {out / 'memorisation.html'}")


def measure(backbone: Backbone, found: CanarySet, config: MemorisationConfig) -> dict[str, Any]:
    """Exposure and extraction of each canary, and their means by how often the canaries were put in."""
    secrets = reference_secrets(found, config.references, config.seed)
    rows = []
    with progress("canaries", len(found.canaries), stage=STAGE) as tracker:
        for canary in found.canaries:
            losses = secret_losses(backbone, canary, [canary.secret, *secrets], config.micro_batch_tokens)
            rank, bits = exposure(losses[0], losses[1:])
            said = extracted(backbone, canary)
            symbols = _symbols_right(said, canary.secret, found)
            rows.append(
                {
                    "canary": canary.canary_id,
                    "repeats": canary.repeats,
                    "rank": rank,
                    "exposure": bits,
                    "exposure_extrapolated": extrapolated_exposure(losses[0], losses[1:], found.space_bits),
                    "loss": float(losses[0]),
                    "loss_references": float(losses[1:].mean()),
                    "extracted": symbols == found.num_symbols,
                    "symbols_right": symbols,
                }
            )
            tracker.advance()
    return {
        "canaries": rows,
        "groups": _groups(rows, config.seed),
        "references": len(secrets),
        "max_exposure": float(np.log2(len(secrets) + 1)),
        "space_bits": found.space_bits,
        "chance_exposure": CHANCE_EXPOSURE,
        "num_symbols": found.num_symbols,
    }


def _groups(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Means over the canaries that were put in equally often, from never to most."""
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        members[row["repeats"]].append(row)
    table = []
    for repeats, own in sorted(members.items()):
        interval = bootstrap_mean([row["exposure"] for row in own], seed=seed)
        table.append(
            {
                "repeats": repeats,
                "n": len(own),
                "exposure": interval.mean,
                "exposure_low": interval.low,
                "exposure_high": interval.high,
                "exposure_extrapolated": float(np.mean([row["exposure_extrapolated"] for row in own])),
                "extracted": sum(row["extracted"] for row in own),
                "symbols_right": float(np.mean([row["symbols_right"] for row in own])),
            }
        )
    return table


@torch.no_grad()
def secret_losses(
    backbone: Backbone, canary: Canary, secrets: Sequence[str], micro_batch_tokens: int
) -> np.ndarray:
    """[len(secrets)] nats of each completion of the canary's question that ends in that secret and then ends."""
    prompt_ids = backbone.codec.prompt_ids([Message(role="user", content=canary.prompt)])
    rows = [[*prompt_ids, *backbone.codec.completion_ids(canary.prefix + secret)] for secret in secrets]
    lengths, start = [len(row) for row in rows], len(prompt_ids)

    def work(max_tokens: int) -> np.ndarray:
        losses = np.zeros(len(rows))
        for places in token_budget_batches(lengths, max_tokens):
            tokens_BS = right_padded([rows[i] for i in places], backbone.codec.pad_token_id, backbone.device)
            ends_B = torch.tensor([lengths[i] for i in places], device=backbone.device)
            positions_S = torch.arange(tokens_BS.shape[1], device=backbone.device)
            counts_BS = ((positions_S >= start) & (positions_S < ends_B[:, None]))[:, 1:]
            hidden_BSH = backbone.hidden(REFERENCE, tokens_BS)[:, :-1]
            logprobs_N, _ = token_logprobs(backbone.head, hidden_BSH[counts_BS], tokens_BS[:, 1:][counts_BS])
            found_BS = torch.zeros(counts_BS.shape, dtype=torch.float64, device=backbone.device)
            found_BS.masked_scatter_(counts_BS, -logprobs_N.double())
            losses[places] = found_BS.sum(1).cpu().numpy()
        return losses

    return TokenBudget(micro_batch_tokens, shorter="max_tokens").fit(work, lengths)


@torch.no_grad()
def extracted(backbone: Backbone, canary: Canary) -> str:
    """What the model goes on with, token by token the likeliest, after the question and the answer's beginning."""
    codec = backbone.codec
    begun = codec.completion_ids(canary.prefix.rstrip(), finished=False)
    ids = [*codec.prompt_ids([Message(role="user", content=canary.prompt)]), *begun]
    room = min(codec.max_tokens - len(ids), 2 * len(codec.completion_ids(canary.secret)) + 4)
    said: list[int] = []
    for _ in range(room):
        tokens_BS = torch.tensor([[*ids, *said]], device=backbone.device)
        hidden_BH = backbone.hidden(REFERENCE, tokens_BS)[:, -1]
        token = int(backbone.logits(hidden_BH)[0].argmax())
        if token in codec.end_token_ids:
            break
        said.append(token)
    return codec.decode(said)


def _symbols_right(said: str, secret: str, found: CanarySet) -> int:
    """How many symbols of the secret come out at the beginning, separators aside."""

    def symbols(text: str) -> str:
        return "".join(character for character in text if character in found.alphabet)

    count = 0
    for got, wanted in zip(symbols(said), symbols(secret), strict=False):
        if got != wanted:
            break
        count += 1
    return count


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """exposure_N and extracted_N for canaries that were put in N times."""
    figures: dict[str, Any] = {"chance_exposure": result["chance_exposure"]}
    for group in result["groups"]:
        figures[f"exposure_{group['repeats']}"] = group["exposure"]
        figures[f"extracted_{group['repeats']}"] = group["extracted"] / group["n"]
    return figures


def told(result: dict[str, Any]) -> str:
    """One line for the terminal."""
    parts = [
        f"{group['repeats']} times {group['exposure']:.1f} bits, {group['extracted']} of {group['n']} extracted"
        for group in result["groups"]
    ]
    return f"exposure by repeats: {'; '.join(parts)} (chance {result['chance_exposure']:.1f} bits)"
