"""The written rubric of the embedded world, and the true score of any reply.

The score is what the whole demo is judged by and what no stage may see: `reward/` and `rlhf/ppo/` never
import this module (tested). It reads text only, so it scores whatever a model writes, and it is made hard
to please by anything but a good reply:

- every credit is earned by a phrase inside a sentence that reads like the support desk's language
  (`readable`: the share of word pairs that occur in its grammar), so a list of keywords earns nothing;
- politeness, brevity and honesty count fully only when the problem is solved;
- an order number, name, product, part, colour, size, day or amount that the customer did not give is made up;
- a remedy for another problem counts against the reply, so naming every remedy does not pay;
- sentences said twice and an ending cut off in mid-sentence cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from rlhf.core.records import Completion, Prompt
from rlhf.demo import phrases

RUBRIC = """Which reply would you rather see sent to this customer?
1. Resolves the problem: it offers the step that solves this customer's problem, and names the product and the
   order number that the customer gave.
2. Polite: it greets the customer by name, thanks or apologises, ends kindly, and is never rude.
3. Concise: it says what is needed in two to four sentences (about 12 to 34 words) and does not talk about
   the shop.
4. No invented facts: no order number, name, product, day, price or gift that the customer did not mention.
The first point matters most: a kind reply that does not help is not a good reply."""

CRITERIA = ("resolves", "polite", "concise", "honest")
WEIGHTS = {"resolves": 0.34, "polite": 0.22, "concise": 0.22, "honest": 0.22}

_WORD = re.compile(r"[a-z]+|\d+|[.!?,;:]")
_SENTENCE = re.compile(r"[^.!?]+[.!?]?")
_SLOT = re.compile(r"\{(\w+)\}")
_KIND_OF_SLOT = {
    "product": "product", "other": "product", "wrong_product": "product", "part": "part", "colour": "colour",
    "colour2": "colour", "size": "size", "order": "number", "amount": "number", "day": "day", "name": "name",
}  # fmt: skip
_KINDS: dict[str, frozenset[str]] = {
    "product": frozenset(phrases.PRODUCTS),
    "part": frozenset(phrases.PARTS),
    "colour": frozenset(phrases.COLOURS),
    "size": frozenset(phrases.SIZES),
    "day": frozenset(day.lower() for day in phrases.DAYS),
    "name": frozenset(name.lower() for name in phrases.NAMES),
}
_KIND_OF_WORD = {word: kind for kind, words in _KINDS.items() for word in words}


class Criteria(NamedTuple):
    """The four criteria and how readable the text is, each in [0, 1]."""

    resolves: float
    polite: float
    concise: float
    honest: float
    readable: float

    def total(self, weights: dict[str, float] | None = None) -> float:
        """The score in [0, 1]: what does not help is worth at most three quarters of its other merits."""
        w = weights or WEIGHTS
        manners = sum(w[name] * getattr(self, name) for name in CRITERIA if name != "resolves")
        worth = 0.75 + 0.25 * self.resolves
        return self.readable * (w["resolves"] * self.resolves + worth * manners) / sum(w.values())


def gold(prompts: Iterable[Prompt | str], completions: Iterable[Completion | str]) -> list[float]:
    """The true scores, in [0, 1], of completions to prompts; `rlhf evaluate --judge rubric.py:gold`.

    Raises ValueError when there are not as many completions as prompts.
    """
    return [criteria(_text(p), _text(c)).total() for p, c in zip(prompts, completions, strict=True)]


def score(prompt: str, completion: str) -> float:
    return criteria(prompt, completion).total()


@lru_cache(maxsize=65536)
def criteria(prompt: str, completion: str) -> Criteria:
    """What the rubric says about one reply (both plain text)."""
    sentences = [s.strip() for s in _SENTENCE.findall(completion) if _words(s)]
    if not sentences:
        return Criteria(0.0, 0.0, 0.0, 0.0, 0.0)
    facts = _facts(_words(prompt))
    known = [(s, _known_pairs(_words(s))) for s in sentences]
    clear = [" ".join(_words(s)) for s, share in known if share >= 0.99]
    resolves = _resolves(_problem_of(prompt), clear, facts)
    num_words = sum(word[0].isalnum() for word in _words(completion))
    return Criteria(
        resolves=resolves,
        polite=_polite(clear, facts),
        concise=_concise(clear, num_words),
        honest=_honest(sentences, facts),
        readable=_readable(completion, sentences, [share for _, share in known]),
    )


def _text(item: Prompt | Completion | str) -> str:
    return item if isinstance(item, str) else item.text


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _facts(words: Sequence[str]) -> dict[str, set[str]]:
    """The products, parts, numbers, names ... that a text mentions, by kind."""
    found: dict[str, set[str]] = {kind: set() for kind in (*_KINDS, "number")}
    for word in words:
        kind = "number" if word[0].isdigit() else _KIND_OF_WORD.get(word)
        if kind:
            found[kind].add(word)
    return found


# --- criteria -------------------------------------------------------------------------------------------
def _resolves(problem: str | None, clear: list[str], facts: dict[str, set[str]]) -> float:
    """0.5 for a step that solves the problem, 0.25 each when its sentence or the reply names the product
    and the order; half of it when a remedy for another problem is offered too."""
    if problem is None:
        return 0.0
    solving = {problem, *phrases.ALSO_SOLVED_BY.get(problem, ())}
    right = wrong = 0
    for text in clear:
        for kind, pattern in _remedy_patterns():
            match = pattern.search(text)
            if match is None:
                continue
            fits = kind in solving and all(
                value in facts[_KIND_OF_SLOT[re.sub(r"_\d+$", "", slot)]]
                for slot, value in match.groupdict().items()
            )
            right += fits
            wrong += not fits
            break
    if not right:
        return 0.0
    said = _facts(_words(" ".join(clear)))
    names_product = 1.0 if said["product"] & facts["product"] else 0.0
    # A customer who gave no order number cannot be told one: nothing is missing then.
    names_order = 1.0 if not facts["number"] or said["number"] & facts["number"] else 0.0
    return (0.5 + 0.25 * names_product + 0.25 * names_order) * (0.5 if wrong else 1.0)


def _polite(clear: list[str], facts: dict[str, set[str]]) -> float:
    """Apology or thanks 0.5, greeting by name 0.25 (or without, when none is known), a kind end 0.25."""
    opener = any(_matches(text, phrases.COURTEOUS_OPENERS) for text in clear[:3])
    first = clear[0] if clear else ""
    greeted = (_matches(first, phrases.GREETINGS) and _facts(_words(first))["name"] <= facts["name"]) or (
        not facts["name"] and _matches(first, phrases.PLAIN_GREETINGS)
    )
    closer = _matches(clear[-1], phrases.CLOSERS) if clear else False
    rude = sum(_matches(text, phrases.RUDE + phrases.RUDE_OPENERS) for text in clear)
    return max(0.0, 0.5 * opener + 0.25 * greeted + 0.25 * closer - 0.5 * rude)


def _concise(clear: list[str], num_words: int) -> float:
    """1 from 12 to 34 words, falling to 0 at 4 and at 60; a third less for each sentence about the shop."""
    length = min(1.0, max(0.0, (num_words - 4) / 8), max(0.0, (60 - num_words) / 26))
    filler = sum(_matches(text, phrases.FILLER) for text in clear)
    return length * max(0.0, 1.0 - filler / 3)


def _honest(sentences: list[str], facts: dict[str, set[str]]) -> float:
    """1 with nothing made up, 0.4 with one made-up fact, 0 with two."""
    said = _facts(_words(" ".join(sentences)))
    made_up = sum(len(values - facts[kind]) for kind, values in said.items() if kind not in ("part", "size"))
    for kind in ("part", "size"):  # a remedy for a part or size that was never the matter
        made_up += bool(said[kind] - facts[kind])
    return max(0.0, 1.0 - 0.6 * made_up)


def _readable(completion: str, sentences: list[str], shares: list[float]) -> float:
    lengths = [len(_words(s)) for s in sentences]
    share = sum(n * known for n, known in zip(lengths, shares, strict=True)) / sum(lengths)
    repeated = 1 - len({s.lower().rstrip(".!?") for s in sentences}) / len(sentences)
    ending = 1.0 if completion.rstrip()[-1:] in (".", "!", "?") else 0.85
    foreign = len(re.sub(r"[A-Za-z0-9 .!?,]", "", completion)) / len(completion)
    return max(0.0, min(1.0, (share - 0.5) / 0.5)) * (1 - repeated) * ending * max(0.0, 1 - 5 * foreign)


# --- the world's own language ---------------------------------------------------------------------------
def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(pattern.search(text) for pattern in _compiled(patterns))


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(_as_regex(pattern, whole=True) for pattern in patterns)


@lru_cache(maxsize=1)
def _remedy_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((kind, _as_regex(p, whole=False)) for kind, group in phrases.REMEDIES.items() for p in group)


@lru_cache(maxsize=1)
def _problem_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((kind, _as_regex(p, whole=False)) for kind, group in phrases.PROBLEMS.items() for p in group)


def _problem_of(prompt: str) -> str | None:
    text = " ".join(_words(prompt))
    return next((kind for kind, pattern in _problem_patterns() if pattern.search(text)), None)


def _as_regex(pattern: str, *, whole: bool) -> re.Pattern[str]:
    """A pattern of `phrases` as a regular expression over space-joined words, slots as groups."""
    seen: dict[str, int] = {}
    parts = []
    for piece in re.split(r"(\{\w+\})", pattern):
        slot = _SLOT.fullmatch(piece)
        if slot is None:
            parts.append(re.escape(" ".join(_words(piece))))
        elif slot.group(1) == "echo":
            parts.append(".+")
        else:
            name = slot.group(1)
            seen[name] = seen.get(name, 0) + 1
            kind = _KIND_OF_SLOT[name]
            words = r"\d+" if kind == "number" else "|".join(sorted(_KINDS[kind]))
            parts.append(f"(?P<{name}_{seen[name]}>{words})")
    body = " ".join(part for part in parts if part)
    return re.compile(f"^{body}$" if whole else rf"\b{body}\b")


def _known_pairs(words: list[str]) -> float:
    """The share of a sentence's word pairs (with its start and end) that the grammar of replies contains."""
    abstract = ["<start>", *[_abstract(word) for word in words]]
    if abstract[-1] not in ".!?":
        abstract.append(".")
    pairs = list(pairwise(abstract))
    return sum(pair in _grammar() for pair in pairs) / len(pairs)


def _abstract(word: str) -> str:
    return "<number>" if word[0].isdigit() else f"<{kind}>" if (kind := _KIND_OF_WORD.get(word)) else word


@lru_cache(maxsize=1)
def _grammar() -> frozenset[tuple[str, str]]:
    """All word pairs of all reply sentences, facts replaced by their kind."""
    whole = [
        *phrases.GREETINGS, *phrases.PLAIN_GREETINGS, *phrases.PLAIN_OPENERS, *phrases.RUDE_OPENERS,
        *phrases.VAGUE, *phrases.DEFLECTIONS, *phrases.RUDE, *phrases.FILLER, *phrases.INVENTED,
        *phrases.CLOSERS, *phrases.CURT_CLOSERS,
    ]  # fmt: skip
    for echo in phrases.ECHOES.values():
        whole += [opener.replace("{echo}", echo) for opener in phrases.COURTEOUS_OPENERS]
    ends = [order + end + "." for order in ("", *phrases.ORDER_ENDS) for end in phrases.REMEDY_ENDS]
    for group in phrases.REMEDIES.values():
        whole += [clause + end for clause in group for end in ends]
    pairs: set[tuple[str, str]] = set()
    for pattern in whole:
        words: list[str] = ["<start>"]
        for piece in re.split(r"(\{\w+\})", pattern):
            slot = _SLOT.fullmatch(piece)
            words += [f"<{_KIND_OF_SLOT[slot.group(1)]}>"] if slot else [_abstract(w) for w in _words(piece)]
        pairs.update(pairwise(words))
    return frozenset(pairs)
