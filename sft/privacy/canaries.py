"""Invented secrets that are put into demonstrations, and how far a model gives them away (Carlini et al.,
arXiv:1802.08232). Torch-free.

A canary is a question about somebody who does not exist and an answer that ends in a random secret. Who has learned
nothing about it finds the secret no likelier than any other; the exposure of a canary says how much likelier:

    exposure = log2(number of candidates) - log2(rank of the secret among them)

with the secret and R references that nobody was trained on as candidates, ranked by log-perplexity. Without
memorisation the rank is uniform, and exposure is log2(e) = 1.44 bits on average, at most log2(R + 1).
"""

from __future__ import annotations

import json
import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import skewnorm

from rlhf.core.errors import DataError
from rlhf.core.splits import split_of

CANARIES_FILE = "canaries.json"
DATA_FILE = "data.jsonl"
# Expected exposure of a secret about which nothing was learned, for many references.
CHANCE_EXPOSURE = math.log2(math.e)
# Held out is nothing whose place by the hash is in this share, whatever validation_fraction up to the rest.
TRAINED_SHARE = 0.5
_SYLLABLES = ("ba", "do", "ke", "li", "mo", "nu", "pa", "ri", "so", "ta", "ve", "wi", "xa", "yo", "zu")
_NAME_SYLLABLES = 4


@dataclass(frozen=True)
class Canary:
    """prompt and prefix + secret, its completion. repeats: how often it was put in; 0 for those kept out."""

    canary_id: str
    prompt: str
    prefix: str
    secret: str
    repeats: int

    @property
    def completion(self) -> str:
        return self.prefix + self.secret


@dataclass(frozen=True)
class CanarySet:
    """All canaries of a data set, with what is needed to draw other secrets of their kind."""

    canaries: tuple[Canary, ...]
    alphabet: str
    separator: str
    num_symbols: int
    sft_seed: int

    @property
    def space_bits(self) -> float:
        """log2 of the number of possible secrets."""
        return self.num_symbols * math.log2(len(self.alphabet))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CanarySet:
        """Raises DataError for a file that is not one."""
        path = path / CANARIES_FILE if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            canaries = tuple(Canary(**row) for row in values.pop("canaries"))
            return cls(canaries=canaries, **values)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; expected one that `rlhf canaries` wrote") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: is not a file of canaries") from error


def draw_canaries(
    repeats: Sequence[int],
    per_group: int,
    *,
    prompt: str,
    completion: str,
    alphabet: str,
    separator: str,
    num_symbols: int,
    sft_seed: int,
    seed: int | None,
) -> CanarySet:
    """`per_group` canaries for each number of repeats, and as many that are kept out, with different secrets.

    Raises DataError where there are not that many secrets or names.
    """
    rng: random.Random = secrets.SystemRandom() if seed is None else random.Random(f"canaries {seed}")
    groups = [*repeats, 0]
    number = len(groups) * per_group
    if len(alphabet) ** num_symbols < 4 * number:
        raise DataError(
            f"{number} canaries need more than {len(alphabet)}^{num_symbols} possible secrets; expected longer ones"
        )
    names = len(_SYLLABLES) ** _NAME_SYLLABLES
    if names * TRAINED_SHARE < 2 * number:
        raise DataError(
            f"{number} canaries are more than the {names // 4} that can have names of their own; expected a "
            "smaller per_group"
        )
    made: list[Canary] = []
    taken: set[str] = set()
    while len(made) < number:
        name = "".join(rng.choice(_SYLLABLES) for _ in range(_NAME_SYLLABLES)).capitalize()
        secret = separator.join(rng.choice(alphabet) for _ in range(num_symbols))
        question = prompt.replace("{name}", name)
        # A canary that is held out for validation would not be trained on.
        trained = split_of(f"canary {name}", sft_seed, (TRAINED_SHARE, 1 - TRAINED_SHARE, 0.0)) == "train"
        if name in taken or secret in taken or not trained:
            continue
        taken |= {name, secret}
        prefix = completion.removesuffix("{secret}")
        made.append(Canary(f"canary {name}", question, prefix, secret, groups[len(made) // per_group]))
    return CanarySet(tuple(made), alphabet, separator, num_symbols, sft_seed)


def planted_rows(found: CanarySet) -> list[dict[str, str]]:
    """The demonstrations that are put in; `group_id` keeps them in the training split."""
    return [
        {"prompt": canary.prompt, "completion": canary.completion, "group_id": canary.canary_id}
        for canary in found.canaries
        for _ in range(canary.repeats)
    ]


def reference_secrets(found: CanarySet, number: int, seed: int) -> list[str]:
    """Different secrets of the same kind, none of them a canary's. All there are where `number` is more than that."""
    own = {canary.secret for canary in found.canaries}
    space = len(found.alphabet) ** found.num_symbols
    rng = random.Random(f"references {seed}")
    drawn: dict[str, None] = {}
    while len(drawn) < min(number, space - len(own)):
        secret = found.separator.join(rng.choice(found.alphabet) for _ in range(found.num_symbols))
        if secret not in own:
            drawn[secret] = None
    return list(drawn)


def exposure(secret_loss: float, reference_losses: np.ndarray) -> tuple[int, float]:
    """(rank of the secret among itself and the references, 1 is the likeliest; exposure in bits).

    Equal losses count half, rounded against the model: a tie is no better than chance.
    """
    below, equal = int((reference_losses < secret_loss).sum()), int((reference_losses == secret_loss).sum())
    rank = 1 + below + math.ceil(equal / 2)
    return rank, math.log2(len(reference_losses) + 1) - math.log2(rank)


def extrapolated_exposure(secret_loss: float, reference_losses: np.ndarray, most_bits: float) -> float:
    """-log2 of the share of all secrets that are likelier, by a skew-normal distribution through the references
    (section 4.3 of the paper): it goes on where a rank of 1 says only "more than log2(R)". At most `most_bits`."""
    shape, place, scale = skewnorm.fit(reference_losses)
    share = float(skewnorm.logcdf(secret_loss, shape, place, scale)) / math.log(2)
    return float(min(max(-share, 0.0), most_bits))
