"""Which models are served, under which names, and who answers whom.

With the registry's names the champion is followed: when the name moves, the new model is loaded beside the old one,
then new requests go to it, and the old one is let go when its last request has ended. A model that cannot be loaded
changes nothing but `fault`; it is tried again when the name moves or after RETRY_S.

With a canary share the candidate answers its share of the conversations. Which ones follows from a hash of the
conversation and the candidate, so one conversation stays with one model, and each candidate meets other people.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhf.core.chat import first_line
from rlhf.core.errors import DataError
from rlhf.loop.models import Generator, ModelPool
from rlhf.serve.batch import Writer

CHAMPION, CANDIDATE = "champion", "candidate"
RETRY_S = 30.0


class Named(Protocol):
    """What a name of the registry points at."""

    @property
    def artifact_id(self) -> str: ...

    @property
    def path(self) -> Path: ...


Aliases = Callable[[], Mapping[str, Named]]


@dataclass(eq=False)
class Served:
    """A model that is loaded. key: what it was loaded for (an artifact id or a path); uses: requests that it answers
    now, guarded by the catalog's lock."""

    key: str
    generator: Generator
    writer: Writer
    loaded_at: float
    uses: int = 0

    @property
    def model_id(self) -> str:
        return self.generator.model_id


@dataclass(frozen=True)
class Choice:
    """Who answers a request. name: what the caller asked for; route: champion or candidate."""

    served: Served
    name: str
    route: str


class Catalog:
    """aliases: reads the registry's names; without it, the one model of `fixed` is served under `fixed_name`."""

    def __init__(
        self,
        pool: ModelPool,
        *,
        aliases: Aliases | None = None,
        fixed: str | None = None,
        canary_share: float = 0.0,
        on_event: Callable[[str, str], None] = lambda kind, text: None,
    ) -> None:
        self._pool, self._aliases, self._fixed = pool, aliases, fixed
        self.canary_share = canary_share
        self._on_event = on_event
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._loaded: dict[str, Served] = {}
        self._routes: dict[str, Served] = {}
        self._failed: dict[str, tuple[str, float]] = {}
        self._fault = ""
        self.fixed_name = "" if fixed is None else (Path(fixed).name or fixed)

    # ---- asking ------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return CHAMPION in self._routes

    @property
    def fault(self) -> str:
        """Why the registry's names could not be followed at the last look; '' when they could."""
        return self._fault

    def names(self) -> dict[str, Served]:
        """The names that can be asked for: champion and candidate, and each model's own (its artifact id)."""
        with self._lock:
            routes = dict(self._routes)
        if self._fixed is not None:
            return {self.fixed_name: routes[CHAMPION]} if CHAMPION in routes else {}
        return {**routes, **{served.key: served for served in routes.values()}}

    def routes(self) -> dict[str, Served]:
        """Who is champion and who is candidate now."""
        with self._lock:
            return dict(self._routes)

    def borrow(self, name: str, conversation: str) -> Choice:
        """The model for one request, which stays loaded until `give_back`. Raises KeyError for an unknown name."""
        with self._lock:
            choice = self._choose(name, conversation)
            choice.served.uses += 1
        return choice

    def give_back(self, choice: Choice) -> None:
        with self._lock:
            choice.served.uses -= 1

    def _choose(self, name: str, conversation: str) -> Choice:
        if self._fixed is not None:
            if name != self.fixed_name or CHAMPION not in self._routes:
                raise KeyError(name)
            return Choice(self._routes[CHAMPION], name, CHAMPION)
        candidate = self._routes.get(CANDIDATE)
        drawn = candidate is not None and canary_draw(conversation, candidate.key) < self.canary_share
        if name == CHAMPION and candidate is not None and drawn:
            return Choice(candidate, name, CANDIDATE)
        if name in self._routes:
            return Choice(self._routes[name], name, name)
        for route, served in self._routes.items():
            if served.key == name:  # exactly this one, whatever the canary's share
                return Choice(served, name, route)
        raise KeyError(name)

    # ---- following the names -----------------------------------------------------------------------------

    def look(self) -> None:
        """Load what the names point at now, switch, and let go of what nobody uses. Raises on the first look only."""
        with self._looking:
            first = not self.ready
            try:
                wanted = self._wanted()
            except Exception as error:  # the store may be away for a moment: go on with what is loaded
                if first:
                    raise
                self._note([f"the registry cannot be read: {error}"])
                return
            faults = []
            for route, (key, path) in wanted.items():
                try:
                    self._switch(route, self._load(key, path))
                except Exception as error:  # whatever a broken file makes its reader raise
                    if first and route == CHAMPION:
                        raise
                    faults.append(f"{route} {key} cannot be served: {error}")
            for route in set(self._routes) - set(wanted) - {CHAMPION}:
                self._switch(route, None)
            self._note(faults)
            self._let_go()

    def _wanted(self) -> dict[str, tuple[str, str]]:
        """route -> (key, path). Raises DataError when there is no champion and never was one."""
        if self._fixed is not None:
            return {CHAMPION: (self._fixed, self._fixed)}
        assert self._aliases is not None
        names = self._aliases()
        if CHAMPION not in names and not self.ready:
            raise DataError(
                "the registry has no champion yet; promote a run with `rlhf promote`, or name one with --model-path"
            )
        wanted = {CHAMPION: names[CHAMPION]} if CHAMPION in names else {}
        candidate = names.get(CANDIDATE)
        if self.canary_share > 0 and candidate is not None and CHAMPION in names:
            is_other = candidate.artifact_id != names[CHAMPION].artifact_id
            wanted |= {CANDIDATE: candidate} if is_other else {}
        return {route: (named.artifact_id, str(named.path)) for route, named in wanted.items()}

    def _load(self, key: str, path: str) -> Served:
        if key in self._loaded:
            return self._loaded[key]
        if key in self._failed:
            reason, failed_at = self._failed[key]
            if time.monotonic() - failed_at < RETRY_S:
                raise DataError(reason)
        generator = None
        try:
            generator = self._pool.generator(path)
            backbone = generator.backbone
            writer = Writer(backbone.sampling_model(generator.role), backbone.codec)
        except Exception as error:
            self._failed[key] = (first_line(error), time.monotonic())
            if generator is not None:  # else each try would leave an adapter behind
                self._pool.release(generator, [one.generator for one in self._loaded.values()])
            raise
        self._failed.pop(key, None)
        self._loaded[key] = Served(key, generator, writer, time.time())
        return self._loaded[key]

    def _switch(self, route: str, served: Served | None) -> None:
        before = self._routes.get(route)
        if before is served:
            return
        with self._lock:
            if served is None:
                del self._routes[route]
            else:
                self._routes[route] = served
        self._on_event("switch", f"{route}: {served.model_id if served is not None else 'nobody'}")

    def _let_go(self) -> None:
        """Forget models that no name points at and no request uses."""
        with self._lock:
            pointed = {id(served) for served in self._routes.values()}
            idle = [one for one in self._loaded.values() if id(one) not in pointed and not one.uses]
            for served in idle:
                del self._loaded[served.key]
        for served in idle:
            served.writer.close()
            self._pool.release(served.generator, [other.generator for other in self._loaded.values()])
            self._on_event("unload", served.model_id)

    def _note(self, faults: list[str]) -> None:
        fault = "; ".join(faults)
        if fault and fault != self._fault:
            self._on_event("fault", fault)
        self._fault = fault


def canary_draw(conversation: str, candidate: str) -> float:
    """A number in [0, 1) that one conversation keeps for one candidate."""
    digest = hashlib.sha256(f"{candidate}\0{conversation}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
