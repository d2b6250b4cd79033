"""The corpus generator: cases, the messages customers write about them, and replies of every quality.

A case is one combination of product and problem (its `group_id`) with the details around it. Groups are
split once, by a seeded hash: a held-out group appears in no text that any stage trains on. Everything is a
pure function of the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.core.records import Prompt
from rlhf.demo import phrases

SOURCE = "simulated-support-desk"
HELDOUT_SHARE = 0.2
MAX_NOTES = 4


@dataclass(frozen=True)
class Case:
    """The facts of one customer's message; `name` is None when it is not signed."""

    product: str
    problem: str
    other: str
    part: str
    colour: str
    colour2: str
    size: str
    order: str
    name: str | None

    @property
    def group_id(self) -> str:
        return f"{self.product}/{self.problem}"

    def slots(self) -> dict[str, str]:
        return {
            "product": self.product, "other": self.other, "part": self.part, "colour": self.colour,
            "colour2": self.colour2, "size": self.size, "order": self.order, "name": self.name or "",
        }  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """How often a writer of replies does what: probabilities, all else equal. The rest is the bad way."""

    courteous_opener: float
    rude_opener: float
    greets: float
    right_remedy: float
    vague_remedy: float
    wrong_remedy: float
    names_order: float
    wrong_order: float
    wrong_product: float
    filler: float
    invented: float
    courteous_closer: float
    rude: float


# What the base has read: everything a support desk ever sent, with no sign of what was wanted.
WILD = Quality(
    courteous_opener=0.45, rude_opener=0.2, greets=0.5, right_remedy=0.63, vague_remedy=0.15,
    wrong_remedy=0.1, names_order=0.6, wrong_order=0.1, wrong_product=0.05, filler=0.4, invented=0.35,
    courteous_closer=0.4, rude=0.2,
)  # fmt: skip
# Demonstrations: written by people who mean well but do not always do well.
DEMONSTRATED = Quality(
    courteous_opener=0.6, rude_opener=0.1, greets=0.6, right_remedy=0.74, vague_remedy=0.13,
    wrong_remedy=0.02, names_order=0.6, wrong_order=0.08, wrong_product=0.0, filler=0.35, invented=0.3,
    courteous_closer=0.5, rude=0.1,
)  # fmt: skip
# The answer the rubric asks for: used by tests and as the upper end of the scale, never to train.
IDEAL = Quality(
    courteous_opener=1.0, rude_opener=0.0, greets=1.0, right_remedy=1.0, vague_remedy=0.0, wrong_remedy=0.0,
    names_order=1.0, wrong_order=0.0, wrong_product=0.0, filler=0.0, invented=0.0, courteous_closer=1.0,
    rude=0.0,
)  # fmt: skip


def is_heldout(group_id: str, seed: int) -> bool:
    """Whether a group is kept for evaluation. Depends on the seed and the group alone."""
    digest = hashlib.sha256(f"{seed}:{group_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELDOUT_SHARE


def all_groups() -> list[tuple[str, str]]:
    """Every (product, problem) that makes sense: only what has a plug or a battery can be faulty."""
    return [
        (product, problem)
        for product in phrases.PRODUCTS
        for problem in phrases.PROBLEMS
        if problem != "faulty" or product in phrases.POWERED
    ]


def groups_of_split(seed: int, *, heldout: bool) -> list[tuple[str, str]]:
    return [(p, q) for p, q in all_groups() if is_heldout(f"{p}/{q}", seed) == heldout]


def make_case(rng: random.Random, product: str, problem: str) -> Case:
    colour, colour2 = rng.sample(phrases.COLOURS, 2)
    return Case(
        product=product,
        problem=problem,
        other=rng.choice([p for p in phrases.PRODUCTS if p != product]),
        part=phrases.PRODUCTS[product],
        colour=colour,
        colour2=colour2,
        size=rng.choice(phrases.SIZES),
        order=rng.choice(phrases.ORDERS),
        name=rng.choice(phrases.NAMES) if rng.random() < 0.85 else None,
    )


def sentence(pattern: str, slots: dict[str, str]) -> str:
    text = pattern.format(**slots)
    return text[0].upper() + text[1:]


def write_message(rng: random.Random, case: Case) -> str:
    """The customer's message: every fact of the case that a good reply needs stands in it."""
    slots = case.slots()
    parts = [rng.choice(phrases.CUSTOMER_GREETINGS)] if rng.random() < 0.6 else []
    parts.append(sentence(rng.choice(phrases.PROBLEMS[case.problem]), slots) + ".")
    parts.append(sentence(rng.choice(phrases.ORDER_SENTENCES), slots))
    mood = rng.choice(tuple(phrases.MOODS))
    parts += [rng.choice(phrases.MOODS[mood]), rng.choice(phrases.ASKS)]
    if case.name:
        parts.append(case.name)
    return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Reply:
    """A reply, and the desk's notes on it: one word for each thing that it holds, good or bad alike."""

    text: str
    notes: tuple[str, ...]


def write_reply(rng: random.Random, case: Case, quality: Quality) -> str:
    return draft_reply(rng, case, quality).text


def draft_reply(rng: random.Random, case: Case, quality: Quality) -> Reply:
    """One reply, its traits drawn one by one with the probabilities of `quality`."""
    slots = case.slots()
    slots["echo"] = phrases.ECHOES[case.problem].format(**slots)
    slots |= {"amount": str(rng.randrange(50, 100, 5)), "day": rng.choice(phrases.DAYS)}
    slots["wrong_product"] = rng.choice([p for p in phrases.PRODUCTS if p not in (case.product, case.other)])
    parts: list[tuple[str, tuple[str, ...]]] = []

    def say(patterns: tuple[str, ...], *notes: str) -> None:
        parts.append((sentence(rng.choice(patterns), slots), notes))

    if rng.random() < quality.greets:
        say(phrases.GREETINGS if case.name else phrases.PLAIN_GREETINGS, "greeting")
    draw = rng.random()
    if draw < quality.courteous_opener:
        say(phrases.COURTEOUS_OPENERS, "courtesy")
    elif draw < quality.courteous_opener + quality.rude_opener:
        say(phrases.RUDE_OPENERS, "harsh")
    elif draw < 0.9:
        say(phrases.PLAIN_OPENERS, "plain")
    if rng.random() < quality.filler:
        say(phrases.FILLER, "advert")
    parts.append(_remedy(rng, case, quality, slots))
    if rng.random() < quality.invented:
        say(phrases.INVENTED, "extra")
    if rng.random() < quality.rude:
        say(phrases.RUDE, "harsh")
    if rng.random() < quality.filler / 2:
        say(phrases.FILLER, "advert")
    draw = rng.random()
    if draw < quality.courteous_closer:
        say(phrases.CLOSERS, "farewell")
    elif draw < quality.courteous_closer + 0.15:
        say(phrases.CURT_CLOSERS, "curt")
    notes = dict.fromkeys(note for _, found in parts for note in found)
    return Reply(" ".join(text for text, _ in parts), tuple(notes))


def _remedy(
    rng: random.Random, case: Case, quality: Quality, slots: dict[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The sentence that says what will be done, with its notes."""
    draw, note = rng.random(), "fitting"
    if draw < quality.right_remedy:
        problem = case.problem
    elif draw < quality.right_remedy + quality.wrong_remedy:
        solved = (case.problem, *phrases.ALSO_SOLVED_BY.get(case.problem, ()))
        problem, note = rng.choice([p for p in phrases.REMEDIES if p not in solved]), "unfitting"
    elif draw < quality.right_remedy + quality.wrong_remedy + quality.vague_remedy:
        return rng.choice(phrases.VAGUE), ("vague",)
    else:
        return rng.choice(phrases.DEFLECTIONS), ("refusal",)
    clause, notes = rng.choice(phrases.REMEDIES[problem]), [note]
    if "{product}" in clause and rng.random() < quality.wrong_product:
        slots, notes = {**slots, "product": slots["wrong_product"]}, ["mixup"]
    draw, order = rng.random(), None
    if draw < quality.wrong_order:
        order = rng.choice(phrases.ORDERS)
    elif draw < quality.wrong_order + quality.names_order:
        order = case.order
    end = rng.choice(phrases.ORDER_ENDS).format(order=order) if order else ""
    notes.append("unnumbered" if order is None else "numbered" if order == case.order else "misnumbered")
    return sentence(clause, slots) + end + rng.choice(phrases.REMEDY_ENDS) + ".", tuple(notes)


def make_prompts(
    seed: int, num: int, *, name: str, heldout: bool, taken: set[str] | None = None
) -> list[Prompt]:
    """`num` prompts with texts that differ from each other and from `taken` (which is added to).

    name: which use they are for ("sft", "ppo", ...); every use draws its own cases.
    """
    return [prompt for prompt, _ in _cases(seed, num, name, heldout, set() if taken is None else taken)]


def make_demonstrations(
    seed: int, num: int, *, quality: Quality = DEMONSTRATED, taken: set[str] | None = None
) -> list[tuple[Prompt, str]]:
    """`num` prompts of training groups, each with one written reply."""
    rng = random.Random(f"{seed}:replies")
    taken = set() if taken is None else taken
    cases = _cases(seed, num, "sft", False, taken)
    return [(prompt, write_reply(rng, case, quality)) for prompt, case in cases]


def pretraining_conversations(seed: int, num: int, *, taken: set[str]) -> Iterator[tuple[str, str, str]]:
    """(message, reply, notes) of training groups, of mixed quality; none of the messages is in `taken`.

    notes: what the desk writes down afterwards: some of what the reply holds, in random order, then the case's
    product, order, name and problem. Notes never say what is wanted; a model that has read them has learned to
    look up the facts of a message, and to tell at a reply's end what was in it.
    """
    rng = random.Random(f"{seed}:wild")
    for prompt, case in _cases(seed, num, "pretraining", False, taken):
        reply = draft_reply(rng, case, WILD)
        chosen = rng.sample(reply.notes, min(MAX_NOTES, len(reply.notes)))
        facts = [case.product, case.order, case.name or "unsigned", phrases.PROBLEM_NOTES[case.problem]]
        yield prompt.text, reply.text, " ".join([*chosen, *facts])


def _cases(seed: int, num: int, name: str, heldout: bool, taken: set[str]) -> Iterator[tuple[Prompt, Case]]:
    rng = random.Random(f"{seed}:{name}")
    groups = groups_of_split(seed, heldout=heldout)
    made = 0
    while made < num:
        if made % len(groups) == 0:
            rng.shuffle(groups)
        case = make_case(rng, *groups[made % len(groups)])
        text = write_message(rng, case)
        if text in taken:
            continue
        taken.add(text)
        made += 1
        prompt = {"prompt": text, "source": SOURCE, "group_id": case.group_id, "metadata": {"use": name}}
        yield Prompt.model_validate(prompt), case
