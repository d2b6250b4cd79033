"""How much of a text's content stands in the `context` that it was given.

Content words are the words and numbers of a text, lower-cased, without function words ("the", "of", "would").
With C the content words of the completion in order, and a number counting twice (w = 2, else w = 1):

    groundedness = sum of w(c) * s(c) over C  /  sum of w(c) over C

s(c) is 1 where c stands in the context next to the content word that precedes it in the completion (as it does
in copied or lightly edited text; the first word needs only to stand there), 1/2 where it stands in the context
but elsewhere, 0 where it does not. A word and its plain plural are the same word. A completion without content
gets 0: saying nothing is not grounded. It runs from 0 to 1 and is highest for copies of the context, so it is
meant as one term beside a reward for a good answer.
"""

from __future__ import annotations

import re
from itertools import pairwise

# A number keeps its inner separators (1,250.50 or 12:30); an apostrophe belongs to its word.
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|[^\W_]+")
_FUNCTION_WORDS = """
    a an the this that these those i me my we us our you your he him his she her it its they them their who whom
    whose which what and or but nor so yet if then else than as at by for from in into of off on onto out over to
    under up with without within about after before between through during is am are was were be been being do does
    did doing done have has had having will would shall should can could may might must not no yes there here when
    where why how all any both each few more most other some such only own same too very just also again further
    once because while until against it's i'm you're we're they're don't doesn't didn't isn't aren't wasn't weren't
    i'll we'll you'll that's there's
"""
_LEFT_OUT = frozenset(_FUNCTION_WORDS.split())


def grounded_share(context: str, text: str) -> float:
    """See the module's text."""
    known = content_words(context)
    words, pairs = set(known), set(pairwise(known))
    content = content_words(text)
    total = supported = 0.0
    for place, word in enumerate(content):
        weight = 2.0 if word[0].isdigit() else 1.0
        total += weight
        if word in words:
            next_to = place == 0 or (content[place - 1], word) in pairs
            supported += weight if next_to else weight / 2
    return supported / total if total else 0.0


def content_words(text: str) -> list[str]:
    """Words and numbers in order, lower-cased, plural s cut off, without function words."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    return [_singular(word) for word in words if word not in _LEFT_OUT]


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    plain = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if plain else word
