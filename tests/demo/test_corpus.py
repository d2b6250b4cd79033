"""The embedded world's texts: the same for the same seed, and held-out groups nowhere else."""

from __future__ import annotations

import random
from itertools import islice

from rlhf.demo import corpus, phrases, rubric


def _sets(seed: int) -> dict[str, list]:
    taken: set[str] = set()
    demonstrations = corpus.make_demonstrations(seed, 600, taken=taken)
    return {
        "heldout": corpus.make_prompts(seed, 300, name="heldout", heldout=True, taken=taken),
        "rated": corpus.make_prompts(seed, 600, name="rated", heldout=False, taken=taken),
        "ppo": corpus.make_prompts(seed, 600, name="ppo", heldout=False, taken=taken),
        "sft": [prompt for prompt, _ in demonstrations],
        "pretraining": [text for text, _, _ in corpus.pretraining_conversations(seed, 3000, taken=taken)],
    }


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    assert _sets(3) == _sets(3)
    assert _sets(3)["heldout"] != _sets(4)["heldout"]
    assert corpus.make_demonstrations(3, 50) == corpus.make_demonstrations(3, 50)


def test_no_prompt_is_in_two_sets() -> None:
    sets = _sets(0)
    texts = [p if isinstance(p, str) else p.text for members in sets.values() for p in members]
    assert len(texts) == len(set(texts)) == 300 + 600 + 600 + 600 + 3000


def test_heldout_groups_occur_in_no_training_text() -> None:
    sets = _sets(0)
    heldout = {p.group_id for p in sets["heldout"]}
    trained = {p.group_id for name in ("rated", "ppo", "sft") for p in sets[name]}
    assert len(heldout) > 80
    assert not heldout & trained
    for text in sets["pretraining"]:
        problem = rubric._problem_of(text)
        ordered = {word for word in rubric._words(text) if word in phrases.PRODUCTS}
        # "there was a LAMP in the box and no KETTLE": either of the two may be the ordered one
        assert any(f"{product}/{problem}" not in heldout for product in ordered), text


def test_a_fifth_of_the_groups_is_held_out() -> None:
    kept, rest = (len(corpus.groups_of_split(0, heldout=h)) for h in (True, False))
    # 48 products x 11 problems and 23 powered products that can be faulty: 528 + 23 = 551
    assert kept + rest == len(corpus.all_groups()) == 551
    assert 0.14 < kept / 551 < 0.26


def test_every_message_holds_the_facts_that_a_good_reply_needs() -> None:
    rng = random.Random(1)
    for prompt, case in islice(corpus._cases(0, 400, "any", False, set()), 400):
        assert case.product in prompt.text
        assert case.order in prompt.text
        assert rubric._problem_of(prompt.text) == case.problem
        assert rubric.score(prompt.text, corpus.write_reply(rng, case, corpus.IDEAL)) > 0.8


def test_the_vocabulary_is_a_few_hundred_words() -> None:
    rng = random.Random(2)
    words: set[str] = set()
    for prompt, case in corpus._cases(0, 4000, "any", False, set()):
        words |= set(rubric._words(prompt.text + " " + corpus.write_reply(rng, case, corpus.WILD)))
    assert 250 < len({w for w in words if w.isalpha()}) < 500
