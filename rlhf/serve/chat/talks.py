"""Conversations and the answers in them, kept while the page is open; only what is rated goes into the store.

The page knows an answer by a random name, never by the model that wrote it or an id made from that.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from feedback_app.accounts import Person
from feedback_app.answers import MAX_REASON, MAX_WRITTEN
from feedback_app.rendering import tree
from feedback_app.store.engine import Store
from feedback_app.store.live import record
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Completion, Message, Prompt, content_id
from rlhf.serve.chat.endpoint import Answer, Endpoint, EndpointError, Models
from rlhf.serve.config import ChatConfig

SOURCE = "live"
MAX_QUESTION = 20_000
MAX_TALKS = 5000
MAX_AT_ONCE = 8
MAX_SECONDS = 86_400.0
Key = Annotated[str, Field(min_length=8, max_length=128)]
Name = Annotated[str, Field(min_length=8, max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AskBody(_Body):
    text: str = Field(min_length=1, max_length=MAX_QUESTION)
    talk: Name | None = None
    compare: bool = False


class ThumbBody(_Body):
    answer: Name
    thumb: Literal["up", "down"]
    reason: str = Field(default="", max_length=MAX_REASON)
    key: Key


class ChooseBody(_Body):
    """choice 'none': go on with the first answer without having said anything."""

    answers: tuple[Name, Name]
    choice: Literal["a", "b", "tie", "both_bad", "none"]
    reason: str = Field(default="", max_length=MAX_REASON)
    key: Key


class CorrectBody(_Body):
    answer: Name
    text: str = Field(min_length=1, max_length=MAX_WRITTEN)
    key: Key


@dataclass
class Turn:
    """One answer that somebody got: to what, from whom, where it stands. shown_at: seconds since the epoch."""

    talk: Talk
    name: str
    prompt: tuple[Message, ...]
    answer: Answer
    place: int | None = None  # of the answer among the talk's messages, once the talk goes on with it
    shown_at: float = field(default_factory=time.time)


@dataclass
class Talk:
    """messages: what the next question continues. open_pair: two answers of which one has to be chosen first."""

    name: str
    owner: str
    messages: list[Message] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    open_pair: tuple[str, str] | None = None
    busy: bool = False


class Talks:
    """What the page does, without HTTP. Every method takes the person and touches only what is theirs."""

    def __init__(
        self, store: Store, endpoint: Endpoint, config: ChatConfig, *, seed: int | None = None
    ) -> None:
        self.store, self.endpoint, self.config = store, endpoint, config
        self._random = random.Random(seed)
        self._talks: OrderedDict[str, Talk] = OrderedDict()
        self._turns: dict[str, Turn] = {}
        self._asking: Counter[str] = Counter()
        self._going_on = threading.Lock()

    async def overview(self, person: Person, *, is_guest: bool) -> dict[str, Any]:
        """Who I am and whether the endpoint is there."""
        found = {
            "name": person.name,
            "guest": is_guest,
            "title": self.config.title,
            "simulated": self.config.simulated,
        }
        try:
            models = await self.endpoint.models()
        except EndpointError as error:
            return {**found, "ready": False, "why": str(error), "multi_turn": True}
        return {**found, "ready": True, "why": "", "multi_turn": models.multi_turn}

    # ---- asking ------------------------------------------------------------------------------------------

    async def ask(
        self, person: Person, body: AskBody, *, caller: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Events of one question: start, parts of the text, the end of each answer, done; or an error.

        caller: whose questions at once are counted, where one account stands for many people; default the person.
        A question that is broken off, or fails, leaves the conversation as it was.
        """
        caller = person.annotator_id if caller is None else caller
        if self._asking[caller] >= MAX_AT_ONCE:
            raise StoreError(f"{MAX_AT_ONCE} questions are being answered already; wait for one of them")
        talk = self._open(person, body)
        self._asking[caller] += 1
        talk.busy = True
        try:
            async with aclosing(self._answered(talk, body)) as events:
                async for event in events:
                    yield event
        except EndpointError as error:
            if error.status == 404:
                # Its message names the models, which raters must not know.
                self.endpoint.forget_models()
                yield {"error": "the model has just been replaced"}
                return
            yield {"error": str(error)}
        finally:
            talk.busy = False
            self._asking[caller] -= 1
            self._asking = +self._asking  # those who ask nothing are forgotten

    def _open(self, person: Person, body: AskBody) -> Talk:
        if not body.text.strip():
            raise DataError("the question is empty")
        if body.talk is None:
            talk = Talk(secrets.token_urlsafe(16), person.annotator_id)
            self._talks[talk.name] = talk
            while len(self._talks) > MAX_TALKS:
                _, oldest = self._talks.popitem(last=False)
                for name in oldest.turns:
                    self._turns.pop(name, None)
            return talk
        found = self._talks.get(body.talk)
        if found is None or found.owner != person.annotator_id:
            raise StoreError("this conversation has ended; begin a new one")
        if found.busy:
            raise StoreError("the last question is still being answered")
        if found.open_pair is not None:
            raise StoreError("choose one of the two answers first")
        self._talks.move_to_end(found.name)
        return found

    async def _answered(self, talk: Talk, body: AskBody) -> AsyncGenerator[dict[str, Any], None]:
        models = await self.endpoint.models()
        prompt = self._prompt(talk, body.text, models)
        compares = body.compare or self._random.random() < self.config.compare_share
        asked = self._rivals(models) if compares else [models.model]
        turns = [Turn(talk, secrets.token_urlsafe(16), prompt, Answer()) for _ in asked]
        yield {"start": {"talk": talk.name, "answers": [turn.name for turn in turns]}}
        parts: asyncio.Queue[tuple[int, str | BaseException | None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._listen(number, turn, model, parts))
            for number, (turn, model) in enumerate(zip(turns, asked, strict=True))
        ]
        try:
            left = len(tasks)
            while left:
                number, part = await parts.get()
                if isinstance(part, BaseException):
                    raise part
                if part is None:
                    left -= 1
                    answer = turns[number].answer
                    rendered = await asyncio.to_thread(tree, answer.text.strip())
                    yield {"end": {"side": number, "tree": rendered, "cut": answer.finish == "length"}}
                elif part:
                    yield {"part": {"side": number, "text": part}}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield {"done": self._settle(talk, turns)}

    async def _listen(
        self,
        number: int,
        turn: Turn,
        model: str,
        parts: asyncio.Queue[tuple[int, str | BaseException | None]],
    ) -> None:
        config = self.config
        try:
            stream = self.endpoint.stream(
                turn.answer,
                model,
                turn.prompt,
                conversation=turn.talk.name,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                seed=self._random.getrandbits(31),
            )
            async with aclosing(stream) as texts:
                async for text in texts:
                    await parts.put((number, text))
            await parts.put((number, None))
        except Exception as error:  # whatever it is: the question waits for a word from here
            await parts.put((number, error))

    def _rivals(self, models: Models) -> list[str]:
        names = list(models.rivals or (models.model, models.model))
        self._random.shuffle(names)
        return names

    def _prompt(self, talk: Talk, text: str, models: Models) -> tuple[Message, ...]:
        before = talk.messages if models.multi_turn else []
        system = (
            [Message(role="system", content=self.config.system_prompt)] if self.config.system_prompt else []
        )
        return (*system, *before, Message(role="user", content=text.strip()))

    def _settle(self, talk: Talk, turns: list[Turn]) -> dict[str, Any]:
        """The conversation has got these answers. Returns whether one of two has to be chosen."""
        for turn in turns:
            turn.answer.text = turn.answer.text.replace("\0", "").strip()
        talk.messages.append(turns[0].prompt[-1])
        texts = {turn.answer.text for turn in turns}
        turns = turns if len(texts) > 1 else turns[:1]  # equal answers are one
        for turn in turns:
            turn.shown_at = time.time()
            talk.turns.append(turn.name)
            self._turns[turn.name] = turn
        if len(turns) == 2:
            talk.open_pair = (turns[0].name, turns[1].name)
        else:
            self._go_on_with(turns[0])
        return {"choose": len(turns) == 2, "answers": [turn.name for turn in turns]}

    def _go_on_with(self, turn: Turn) -> None:
        turn.place = len(turn.talk.messages)
        turn.talk.messages.append(Message(role="assistant", content=turn.answer.text))
        turn.talk.open_pair = None

    # ---- saying what one thinks --------------------------------------------------------------------------

    def thumb(self, person: Person, body: ThumbBody) -> dict[str, Any]:
        """Keep a thumb; another one about the same answer corrects it."""
        [turn] = self._mine(person, [body.answer])
        return self._record(person, "thumbs", [turn], body.key, thumb=body.thumb, reason=body.reason.strip())

    def choose(self, person: Person, body: ChooseBody) -> dict[str, Any]:
        """Keep which of two answers is better, and go on with it."""
        first, second = self._mine(person, body.answers)
        if first.talk is not second.talk or first.prompt != second.prompt or first is second:
            raise StoreError("these are not two answers to one question")
        saved = {"saved": False}
        if body.choice in ("a", "b"):
            chosen = first if body.choice == "a" else second
            said = {"chosen": self._completion(chosen).completion_id}
        else:
            chosen, said = first, {"preference": body.choice}
        if body.choice != "none":
            said["reason"] = body.reason.strip()
            saved = self._record(person, "pairwise", [first, second], body.key, **said)
        with self._going_on:  # ratings come in threads, and may come twice
            if first.talk.open_pair in ((first.name, second.name), (second.name, first.name)):
                self._go_on_with(chosen)
        return saved | {"goes_on_with": second.name if second.place is not None else first.name}

    def correct(self, person: Person, body: CorrectBody) -> dict[str, Any]:
        """Keep the answer that somebody would have wanted, and go on with it."""
        [turn] = self._mine(person, [body.answer])
        text = body.text.strip()
        if not text:
            raise DataError("a correction has at least one word; found none")
        if text == turn.answer.text:
            raise DataError("this is the answer as it was; change it first")
        saved = self._record(person, "demonstration", [turn], body.key, demonstration=text)
        if turn.place is not None:
            turn.talk.messages[turn.place] = Message(role="assistant", content=text)
        return saved | {"tree": tree(text)}

    def _mine(self, person: Person, names: Sequence[str]) -> list[Turn]:
        found = [turn for name in names if (turn := self._turns.get(name)) is not None]
        if len(found) < len(names) or any(turn.talk.owner != person.annotator_id for turn in found):
            raise StoreError("this answer is too old to be rated; the conversation has ended")
        return found

    def _record(self, person: Person, kind: Any, turns: list[Turn], key: str, **said: Any) -> dict[str, Any]:
        seconds = min(MAX_SECONDS, max(0.0, time.time() - turns[0].shown_at))
        record(
            self.store,
            self.config.project,
            kind,
            self._asked(turns[0]),
            [self._completion(turn) for turn in turns],
            person.annotator_id,
            client_key=key,
            seconds=seconds,
            simulated=self.config.simulated,
            **said,
        )
        return {"saved": True}

    def _asked(self, turn: Turn) -> Prompt:
        # Questions of one conversation stay in one split.
        begin = next(message for message in turn.prompt if message.role == "user")
        return Prompt.model_validate(
            {
                "messages": [message.model_dump() for message in turn.prompt],
                "source": SOURCE,
                "group_id": content_id("g", begin.content),
            }
        )

    def _completion(self, turn: Turn) -> Completion:
        # `answer` keeps equal texts to one question apart: each was somebody's own.
        return Completion.model_validate(
            {
                "prompt_id": self._asked(turn).prompt_id,
                "text": turn.answer.text,
                "model_id": turn.answer.model_id,
                "sampling": {**turn.answer.sampling, "finish": turn.answer.finish, "answer": turn.name},
            }
        )
