"""A model under examination: what it makes of given tokens, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlhf.core.adapters import base_path, load_adapter
from rlhf.core.backbone import REFERENCE, Backbone, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError, ModelError
from rlhf.core.inputs import find_model, model_name
from rlhf.core.logprobs import token_logprobs
from rlhf.core.metrics import progress
from rlhf.core.run import MANIFEST, Launch, Manifest, Workspace, is_finished, read_manifest
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.core.stopping import StopRule

STAGE = "sft-eval"


@dataclass(frozen=True)
class TokenRow:
    """Tokens of which those from `start` on are measured (start >= 1: the first token is never predicted)."""

    ids: list[int]
    start: int

    @property
    def num_measured(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Answer:
    """text: what came before the end. finished: it ended by itself."""

    text: str
    tokens: list[int]
    finished: bool


@dataclass(frozen=True)
class Subject:
    """name: what the figures call it. role: of the backbone, which is held in the precision that was asked for."""

    name: str
    backbone: Backbone
    role: str = REFERENCE
    micro_batch_tokens: int = 16_384

    @property
    def codec(self) -> ChatCodec:
        return self.backbone.codec

    @torch.no_grad()
    def nll(self, rows: Sequence[TokenRow], title: str) -> list[np.ndarray]:
        """Negative log-likelihood in nats of each measured token, [num_measured] per row, in the rows' order."""
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        backbone = self.backbone
        with progress(f"{title}, {self.name}", len(rows), stage=STAGE) as tracker:
            for places in token_budget_batches([len(row.ids) for row in rows], self.micro_batch_tokens):
                batch = [rows[i] for i in places]
                tokens_BS = right_padded([row.ids for row in batch], self.codec.pad_token_id, backbone.device)
                rows_N = torch.tensor([b for b, row in enumerate(batch) for _ in range(row.num_measured)])
                columns_N = torch.tensor([c for row in batch for c in range(row.start, len(row.ids))])
                rows_N, columns_N = rows_N.to(backbone.device), columns_N.to(backbone.device)
                hidden_NH = backbone.hidden_at(self.role, tokens_BS, rows_N, columns_N - 1)
                logprobs_N, _ = token_logprobs(backbone.head, hidden_NH, tokens_BS[rows_N, columns_N])
                values = -logprobs_N.double().cpu().numpy()
                ends = np.cumsum([row.num_measured for row in batch])
                for place, part in zip(places, np.split(values, ends[:-1]), strict=True):
                    found[place] = part
                tracker.advance(len(batch))
        return found

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seed: int,
        title: str,
    ) -> list[Answer]:
        """One completion per prompt. Equal prompts get equal answers where nothing is drawn (temperature 0)."""
        stop = StopRule(self.codec, sampling)
        requests = [Request(ids, cursor) for cursor, ids in enumerate(prompts)]
        if not requests:
            return []
        with progress(f"{title}, {self.name}", len(requests), stage=STAGE) as tracker:
            drawn = sample(
                self.backbone.sampling_model(self.role),
                requests,
                sampling,
                end_token_ids=stop.token_ids,
                ended_by_text=stop.ended_by_text,
                seed=seed,
                max_batch_tokens=self.micro_batch_tokens,
                on_done=tracker.advance,
            )
        return [Answer(stop.text(one.tokens), one.tokens, one.finished) for one in drawn]


@dataclass(frozen=True)
class Named:
    """What a person called the model. path: a directory or hub id. manifest: that of the run it belongs to."""

    name: str
    path: str
    adapter: Path | None
    manifest: Manifest | None

    @property
    def folder(self) -> Path | None:
        """What is hashed for the manifest of the evaluation; None for a model of the hub."""
        folder = self.adapter or Path(self.path)
        return folder if folder.exists() else None


def find_named(text: str, launch: Launch) -> Named:
    """The model that `text` names. Raises DataError for an unfinished run."""
    path = find_model(text, launch)
    folder = Path(path)
    adapter = next((f for f in (folder, folder / "adapter") if (f / "adapter_config.json").is_file()), None)
    if (folder / "config.json").is_file():
        adapter = None
    run = next((f for f in (folder, folder.parent) if (f / MANIFEST).is_file()), None)
    if run is None:
        name = folder.resolve().name if folder.exists() else text.rpartition("/")[2]
        return Named(name, path, adapter, None)
    if not is_finished(run):
        raise DataError(f"{run}: is an unfinished run; expected a finished one (continue it with --resume)")
    return Named(run.resolve().name, path, adapter, read_manifest(run))


def base_of(named: Named, launch: Launch) -> str | None:
    """Where the untouched model is: what the adapter or the run names as its base; None where nothing says so."""
    if named.adapter is not None:
        return base_path(named.adapter, launch)
    manifest = named.manifest
    if manifest is None:
        return None
    base = manifest.extra.get("base")
    if isinstance(base, str) and base:
        local = launch.workspace / base
        return str(local) if local.exists() else base
    parent = manifest.parents.get("base")
    return None if parent is None else str(Workspace(launch.workspace).resolve(parent.path))


def open_subject(
    name: str, path: str, settings: ModelSettings, launch: Launch, *, adapter: Path | None = None, tokens: int
) -> Subject:
    """The model, loaded. Raises ModelError and CheckpointError."""
    source = base_path(adapter, launch) if adapter is not None else path
    backbone = Backbone.load(source, settings, name=model_name(source, launch))
    if adapter is None:
        return Subject(name, backbone, REFERENCE, tokens)
    role = load_adapter(backbone, "policy", adapter, base_name=backbone.name, scalar_head=False)
    if role.prompted:  # its virtual tokens stand in the context too
        backbone.codec.max_tokens -= role.model.active_peft_config.num_virtual_tokens
    return Subject(name, backbone, "policy", tokens)


def require_same_tokens(tuned: Subject, base: Subject) -> None:
    """Raises ModelError where the two cut texts into different tokens: no perplexity could be compared."""
    own, other = tuned.codec.tokenizer.get_vocab(), base.codec.tokenizer.get_vocab()
    if own != other:
        raise ModelError(
            f"{base.backbone.name}: has another tokenizer ({len(other)} tokens) than {tuned.backbone.name} "
            f"({len(own)}); expected the base that it was tuned from"
        )
