"""The lead, rounds and names on PostgreSQL, where locks are not files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served.postgres import Missing, Postgres
from sqlalchemy import insert

from feedback_app.store.engine import Store
from feedback_app.store.schema import projects
from rlhf.core.config import Settings
from rlhf.core.errors import BusyError
from rlhf.core.run import Launch, Run, Workspace
from rlhf.loop import status
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.registry import CHAMPION, PREVIOUS, Registry, promote_in
from rlhf.loop.retrain import rounds as steps
from rlhf.loop.retrain.leader import Leader, is_led
from rlhf.loop.retrain.rounds import Rounds


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    try:
        server = Postgres()
    except Missing as error:
        pytest.skip(str(error))
    with server:
        yield server.create("retrain")


def test_one_leads_and_moves_rounds_and_names(url: str, tmp_path: Path) -> None:
    launch = Launch(workspace=tmp_path, db=url)
    for name in ("one", "two"):
        with Run.start(
            tmp_path / "runs" / name, stage="ppo", settings=Settings(), launch=launch, parents={}, seed=0
        ) as run:
            (run.path / "weights").write_text(name)
            run.finish({})
    with Store.open(url) as store, Store.open(url) as other:
        with store.write() as connection:
            connection.execute(insert(projects), {"project_id": "p", "title": "P", "created_at": 1.0})
        registry = Registry(store, Workspace(tmp_path))
        one, two = (registry.register(tmp_path / "runs" / name).artifact_id for name in ("one", "two"))
        registry.promote(one, actor="ann", reason="first")
        assert not is_led(store)
        with Leader(store) as leader:
            assert is_led(other)
            with pytest.raises(BusyError, match="has been retraining since"), Leader(other):
                pass
            rounds = Rounds(store, leader)
            found = rounds.begin("p", {}, one, {})
            for state in steps.STATES[1:-1]:
                found = rounds.advance(found, state, verdicts=[Verdict(state, True, "fine", 1.0)])
            found = rounds.advance(found, steps.CHAMPION, also=lambda c: promote_in(c, two, "ann", "better"))
            assert found.state == steps.CHAMPION
            # Made before: nothing happens, and nothing is promoted a second time.
            registry.rollback(actor="ann", reason="by hand")
            rounds.advance(found, steps.CHAMPION, also=lambda c: promote_in(c, two, "ann", "better"))
            assert {n: a.artifact_id for n, a in registry.aliases().items()} == {CHAMPION: one, PREVIOUS: two}
            assert status.gather(other, Workspace(tmp_path), 5)["retraining"]["holder"] == leader.holder
            with other.write() as connection:  # somebody else counts the token up
                connection.exec_driver_sql("UPDATE leaders SET token = token + 1")
            with pytest.raises(BusyError, match="has taken over"):
                rounds.begin("p", {}, one, {})
        assert not is_led(store)
