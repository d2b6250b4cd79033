"""The only door through which PPO and evaluation use a reward model.

A reward directory is attached to a backbone as one more role, or as one for each adapter of an ensemble; scores are
read at a completion's last token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from reward.calibrate import decided_logits
from reward.full import open_full
from reward.losses import PairLoss
from rlhf.core.adapters import SCORE_KEY, WEIGHTS_FILE, load_adapter, load_role_weights, load_tensors
from rlhf.core.backbone import Backbone, Role
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import ChatCodec, first_line
from rlhf.core.errors import CheckpointError
from rlhf.core.files import write_json
from rlhf.core.records import Prompt
from rlhf.core.sequences import SequenceBatch, Sequences
from rlhf.core.settings import ModelSettings

SCALE_FILE, HEADS_FILE = "reward.json", "heads.safetensors"
MEMBER_FOLDER = "member-{}"


@dataclass(frozen=True)
class RewardScale:
    """What the numbers of a reward mean.

    mean and std of the scores on the training completions; temperature of the calibrated probabilities, which are
    those of pair_loss at a difference of (s_a - s_b) / temperature. num_members: of the ensemble; num_adapters: how
    many of them have an adapter of their own. attributes: (name, mean, deviation) of the rated attributes, in the order
    of their heads. tie_logit and thumb_offset: see `reward.losses`; None where nothing was learned about them.
    """

    mean: float
    std: float
    temperature: float
    num_members: int = 1
    num_adapters: int = 1
    attributes: tuple[tuple[str, float, float], ...] = ()
    tie_logit: float | None = None
    thumb_offset: float | None = None
    pair_loss: PairLoss = "bradley-terry"

    def logits(self, differences: np.ndarray) -> np.ndarray:
        """log(P(a wins) / P(b wins)) for differences of raw scores, s_a - s_b, of any shape."""
        return decided_logits(self.pair_loss, differences / self.temperature, self.tie_logit)

    def save(self, folder: Path) -> None:
        write_json(folder / SCALE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RewardScale:
        """Raises CheckpointError when the file is missing or damaged."""
        path = folder / SCALE_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if "attributes" in values:
                values["attributes"] = tuple((str(n), float(m), float(d)) for n, m, d in values["attributes"])
            scale = cls(**values)
            if not scale.std > 0 or not scale.temperature > 0:
                raise ValueError("std and temperature must be positive")
            if scale.pair_loss not in get_args(PairLoss):
                raise ValueError(
                    f"pair_loss is {scale.pair_loss!r}; expected one of {', '.join(get_args(PairLoss))}"
                )
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be used ({first_line(error)})") from error
        return scale


class RewardScorer:
    """A reward role of a backbone, or several that are averaged. Scores are raw; `scale` says how to normalise or
    calibrate them.

    others: the further adapters of an ensemble. heads_CH: the single heads of an ensemble on one adapter, and
    behind them those of the attributes. doubt: so many deviations of the members are taken off a score, so that what
    they disagree about pays less (Coste et al., arXiv:2310.02743).
    """

    def __init__(
        self,
        backbone: Backbone,
        role: Role,
        scale: RewardScale,
        *,
        others: Sequence[Role] = (),
        heads_CH: Tensor | None = None,
        doubt: float = 0.0,
    ) -> None:
        self.backbone = backbone
        self.role = role
        self.scale = scale
        self.roles = (role, *others)
        self._heads_CH, self.doubt = heads_CH, doubt

    @classmethod
    def attach(
        cls, backbone: Backbone, folder: Path, *, base_name: str | None = None, name: str = "reward"
    ) -> RewardScorer:
        """Load a reward directory as a role of `backbone`, or as one for each of its adapters.

        Raises CheckpointError where it does not fit."""
        scale = RewardScale.load(folder)
        folders = [folder, *(folder / MEMBER_FOLDER.format(k) for k in range(1, scale.num_adapters))]
        roles = [
            load_adapter(backbone, f"{name}.{k}" if k else name, one, base_name=base_name, scalar_head=True)
            for k, one in enumerate(folders)
        ]
        return cls(backbone, roles[0], scale, others=roles[1:], heads_CH=_heads(folder, scale, backbone))

    @classmethod
    def open_model(cls, folder: Path, settings: ModelSettings, *, name: str) -> RewardScorer:
        """A reward whose every weight was trained (`rlhf reward --method full`), as a backbone of its own.

        Raises ModelError and CheckpointError."""
        scale = RewardScale.load(folder)
        backbone, role = open_full(folder, settings, name)
        return cls(backbone, role, scale, heads_CH=_heads(folder, scale, backbone))

    def reload(self, folder: Path) -> None:
        """Put another reward of the same shape into the same roles: a newer one, while a run goes on.

        Raises CheckpointError where it does not fit; some of the roles may hold it then.
        """
        scale = RewardScale.load(folder)
        folders = [folder, *(folder / MEMBER_FOLDER.format(k) for k in range(1, scale.num_adapters))]
        if len(folders) != len(self.roles):
            raise CheckpointError(f"{folder}: holds {len(folders)} adapters; expected {len(self.roles)}")
        for role, one in zip(self.roles, folders, strict=True):
            tensors = load_tensors(one / WEIGHTS_FILE)
            head = {"head": tensors.pop(SCORE_KEY)} if SCORE_KEY in tensors else {}
            load_role_weights(role, tensors | head, str(one))
        self.scale, self._heads_CH = scale, _heads(folder, scale, self.backbone)

    @torch.no_grad()
    def score(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """Scores [B] of a batch of `sequences`, in one forward pass per adapter."""
        if not self.doubt:
            return self._by_adapter(sequences, batch).mean(0)
        members_MB = self.members(sequences, batch)
        return members_MB.mean(0) - self.doubt * members_MB.std(0, correction=0)

    @torch.no_grad()
    def spread(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """Standard deviation [B] of the members' scores; 0 where there is one."""
        return self.members(sequences, batch).std(0, correction=0)

    @torch.no_grad()
    def members(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """[M, B] the score of each member of the ensemble; their mean is the score."""
        if self._heads_CH is not None and self.scale.num_adapters == 1 and self.scale.num_members > 1:
            hidden_BH = sequences.last_hidden(self.role.name, batch).float()
            return self._heads_CH[: self.scale.num_members] @ hidden_BH.T
        return self._by_adapter(sequences, batch)

    @torch.no_grad()
    def attributes(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """[B, A] predicted values of the attributes in `scale.attributes`, on the scale that they were rated on."""
        count = len(self.scale.attributes)
        if not count or self._heads_CH is None:
            return torch.zeros(len(batch.tokens_BS), 0)
        hidden_BH = sequences.last_hidden(self.role.name, batch).float()
        means, deviations = (
            hidden_BH.new_tensor(v) for v in list(zip(*self.scale.attributes, strict=True))[1:]
        )
        return hidden_BH @ self._heads_CH[-count:].T * deviations + means

    def _by_adapter(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """[adapters, B]"""
        found = []
        for role in self.roles:
            assert role.head is not None
            found.append(role.head(sequences.last_hidden(role.name, batch).float()).squeeze(1))
        return torch.stack(found)

    def score_all(self, sequences: Sequences, rows: Sequence[int] | None = None) -> Tensor:
        """Scores [N] by token budget, on the CPU; NaN for rows that were not asked for (default: all are)."""
        return _all_rows(self.score, sequences, rows)

    def spread_all(self, sequences: Sequences, rows: Sequence[int] | None = None) -> Tensor:
        """`spread` of all rows, as `score_all`."""
        return _all_rows(self.spread, sequences, rows)

    def score_texts(self, prompts: Sequence[Prompt], texts: Sequence[str], *, max_tokens: int) -> list[float]:
        """Scores of finished completions given as text."""
        rows = [
            text_row(self.backbone.codec, prompt, text) for prompt, text in zip(prompts, texts, strict=True)
        ]
        return self.score_all(Sequences(self.backbone, rows, max_tokens=max_tokens, max_bytes=0)).tolist()


def _all_rows(
    measure: Callable[[Sequences, SequenceBatch], Tensor], sequences: Sequences, rows: Sequence[int] | None
) -> Tensor:
    asked = list(range(len(sequences))) if rows is None else list(rows)
    found_N = torch.full((len(sequences),), float("nan"))
    for places in token_budget_batches([sequences.lengths[i] for i in asked], sequences.max_tokens):
        indices = [asked[place] for place in places]
        found_N[indices] = measure(sequences, sequences.batch(indices)).cpu()
    return found_N


def _heads(folder: Path, scale: RewardScale, backbone: Backbone) -> Tensor | None:
    """The single heads beside the score, where `scale` says that there are any. Raises CheckpointError."""
    members = scale.num_members if scale.num_adapters == 1 else 1
    if members == 1 and not scale.attributes:
        return None
    heads_CH = load_tensors(folder / HEADS_FILE).get("heads")
    expected = (members + len(scale.attributes), backbone.hidden_size)
    if heads_CH is None or tuple(heads_CH.shape) != expected:
        found = None if heads_CH is None else tuple(heads_CH.shape)
        raise CheckpointError(f"{folder / HEADS_FILE}: heads have the shape {found}; expected {expected}")
    return heads_CH.to(backbone.device)


def text_row(codec: ChatCodec, prompt: Prompt, text: str) -> list[int]:
    """Token ids of a prompt and a finished completion. Raises DataError when the context is too short."""
    completion = codec.completion_ids(text)
    return [*codec.checked_prompt_ids(prompt, len(completion)), *completion]
