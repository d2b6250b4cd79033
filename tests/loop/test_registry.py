"""The registry: what a run is called, what it came from, and names that move in one piece."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from feedback_app.store.engine import Store
from feedback_app.store.registry_schema import alias_moves, artifact_parents
from feedback_app.store.schema import projects, snapshots
from rlhf.core.config import Settings
from rlhf.core.errors import DataError
from rlhf.core.run import Launch, Run, Workspace
from rlhf.loop import registry as registry_module
from rlhf.loop.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ws"


@pytest.fixture
def registry(root: Path):
    workspace = Workspace(root)
    with Store.open(workspace.db_url) as store:
        yield Registry(store, workspace)


def finished(root: Path, name: str, stage: str = "ppo", **parents: Path) -> Path:
    """A finished run with one file that differs from run to run."""
    launch = Launch(workspace=root, db="sqlite:///unused")
    out = root / "runs" / name
    with Run.start(out, stage=stage, settings=Settings(), launch=launch, parents=parents, seed=0) as run:
        (run.path / "weights").write_text(name)
        run.finish({"score": 1.0})
    return out


def snapshot(registry: Registry, name: str, *, simulated: bool = False) -> Path:
    """An exported snapshot: a folder, and its row in the store."""
    folder = registry.workspace.snapshots / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"snapshot_id": f"s-{name}"}))
    with registry.store.write() as connection:
        if connection.execute(select(projects.c.project_id)).first() is None:
            connection.execute(insert(projects), {"project_id": "p", "title": "P", "created_at": 1.0})
        connection.execute(
            insert(snapshots),
            {
                "snapshot_id": f"s-{name}", "project_id": "p", "content_hash": name, "path": str(folder),
                "seed": 0, "fractions": [0.8, 0.1, 0.1], "counts": {}, "simulated": simulated, "created_at": 2.0,
            },
        )  # fmt: skip
    return folder


def moves(registry: Registry) -> list[tuple[str, str | None, str | None]]:
    query = select(alias_moves.c.name, alias_moves.c.from_artifact, alias_moves.c.to_artifact)
    with registry.store.read() as connection:
        return [tuple(row) for row in connection.execute(query.order_by(alias_moves.c.move_id))]


def test_a_run_is_registered_once_with_what_it_was_made_from(registry, root):
    sft = finished(root, "sft", "sft")
    (sft / "model").mkdir()
    ratings = snapshot(registry, "one", simulated=True)
    reward = finished(root, "reward", "reward", snapshot=ratings, backbone=sft / "model")
    ppo = finished(root, "ppo", reward=reward, backbone=sft / "model")

    policy = registry.register(ppo)
    assert registry.register(ppo) == policy
    assert [a.stage for a in registry.artifacts()] == ["sft", "reward", "ppo"]
    by_stage = {a.stage: a for a in registry.artifacts()}
    assert policy.artifact_id == f"ppo-{policy.sha256[:12]}"
    assert policy.path == ppo
    # the snapshot's ratings are simulated, so is what learned from them, at one remove too; the backbone is not
    assert [by_stage[s].simulated for s in ("sft", "reward", "ppo")] == [False, True, True]
    assert (by_stage["reward"].snapshot_id, policy.snapshot_id) == ("s-one", None)
    with registry.store.read() as connection:
        links = set(connection.execute(select(artifact_parents)).tuples())
    assert links == {
        (by_stage["reward"].artifact_id, by_stage["sft"].artifact_id, "backbone"),
        (policy.artifact_id, by_stage["reward"].artifact_id, "reward"),
        (policy.artifact_id, by_stage["sft"].artifact_id, "backbone"),
    }


def test_a_run_rests_on_the_ratings_that_renewed_its_reward(registry, root):
    """`rlhf ppo --feedback-every` trains reward models within the run: who is erased must find what they taught."""
    ppo = finished(root, "ppo")
    renewed = finished(
        root, "ppo/feedback/iteration-000020/reward", "reward", snapshot=snapshot(registry, "later")
    )
    policy = registry.register(ppo)
    with registry.store.read() as connection:
        links = connection.execute(select(artifact_parents)).all()
    assert [(link.artifact_id, link.parent_id, link.role) for link in links] == [
        (policy.artifact_id, registry.artifact(str(renewed)).artifact_id, "reward 1")
    ]
    assert registry.artifact(str(renewed)).snapshot_id == "s-later"


def test_an_artifact_is_found_by_id_beginning_alias_and_path(registry, root):
    one = registry.register(finished(root, "one"))
    registry.register(finished(root, "two"))
    registry.promote(one.artifact_id, actor="ann", reason="first")
    for name in (one.artifact_id, one.artifact_id[:12], "champion", "runs/one", str(root / "runs" / "one")):
        assert registry.artifact(name) == one, name
    with pytest.raises(DataError, match="several artifacts"):
        registry.artifact("ppo-")
    with pytest.raises(DataError, match="did you mean 'champion'"):
        registry.artifact("champoin")


def test_a_moved_workspace_still_knows_its_artifacts(registry, root, tmp_path):
    one = registry.register(finished(root, "one"))
    root.rename(tmp_path / "moved")
    workspace = Workspace(tmp_path / "moved")
    with Store.open(workspace.db_url) as store:
        again = Registry(store, workspace).register(tmp_path / "moved" / "runs" / "one")
    assert again.artifact_id == one.artifact_id
    assert again.path == tmp_path / "moved" / "runs" / "one"


def test_a_run_that_was_trained_anew_in_the_same_place_is_another_artifact(registry, root):
    one = registry.register(finished(root, "one"))
    (root / "runs" / "one").rename(root / "runs" / "one.old-1")
    two = registry.register(finished(root, "one", "sft"))
    assert two.artifact_id != one.artifact_id
    assert registry.artifact("runs/one").artifact_id in (one.artifact_id, two.artifact_id)


def test_promotion_and_rollback_move_all_names_together(registry, root):
    one, two = (registry.register(finished(root, name)).artifact_id for name in ("one", "two"))
    registry.promote(one, actor="ann", reason="first")
    registry.set_alias(CANDIDATE, two, actor="ann", reason="try it")
    registry.promote(two, actor="ann", reason="better")
    registry.promote(two, actor="ann", reason="again: nothing happens")
    names = {name: a.artifact_id for name, a in registry.aliases().items()}
    assert names == {CHAMPION: two, PREVIOUS: one}

    assert registry.rollback(actor="ann", reason="worse").artifact_id == one
    names = {name: a.artifact_id for name, a in registry.aliases().items()}
    assert names == {CHAMPION: one, PREVIOUS: two}
    registry.rollback(actor="ann", reason="not worse")
    assert registry.alias(CHAMPION).artifact_id == two
    assert moves(registry) == [
        (CHAMPION, None, one),
        (CANDIDATE, None, two),
        (PREVIOUS, None, one),
        (CHAMPION, one, two),
        (CANDIDATE, two, None),
        (CHAMPION, two, one),
        (PREVIOUS, one, two),
        (CHAMPION, one, two),
        (PREVIOUS, two, one),
    ]
    with registry.store.read() as connection:
        audited = connection.execute(
            text("SELECT count(*) FROM audit_log WHERE action = 'alias.move'")
        ).scalar()
    assert audited == 9


def test_a_move_that_fails_half_way_has_not_happened(registry, root, monkeypatch):
    one, two = (registry.register(finished(root, name)).artifact_id for name in ("one", "two"))
    registry.promote(one, actor="ann", reason="first")
    appended = registry_module.audit.append

    def fails_for_the_champion(connection, actor, action, subject="", **details):
        appended(connection, actor, action, subject, **details)
        if subject == CHAMPION:
            raise OSError("the disk is gone")

    monkeypatch.setattr(registry_module.audit, "append", fails_for_the_champion)
    with pytest.raises(OSError, match="disk"):
        registry.promote(two, actor="ann", reason="better")
    assert {name: a.artifact_id for name, a in registry.aliases().items()} == {CHAMPION: one}
    assert moves(registry) == [(CHAMPION, None, one)]


def test_what_cannot_be_served_is_refused(registry, root):
    reward = registry.register(finished(root, "reward", "reward"))
    with pytest.raises(DataError, match="writes no completions"):
        registry.promote(reward.artifact_id, actor="ann", reason="")
    with pytest.raises(DataError, match="no previous champion"):
        registry.rollback(actor="ann", reason="")
    with pytest.raises(DataError, match="not a finished run"):
        registry.register(root / "runs" / "nothing")
    one = registry.register(finished(root, "one"))
    (one.path / "weights").write_text("tampered with")
    with pytest.raises(DataError, match="not those that were registered"):
        registry.promote(one.artifact_id, actor="ann", reason="")
    (one.path / registry_module.FINISHED).unlink()
    with pytest.raises(DataError, match="not there any more"):
        registry.promote(one.artifact_id, actor="ann", reason="")
    assert registry.aliases() == {}


def test_a_rollback_by_command_needs_no_torch(registry, root):
    """A process of its own, as in an incident; its seconds are measured by scripts/prove/kills_retrain.py."""
    one, two = (registry.register(finished(root, name)).artifact_id for name in ("one", "two"))
    registry.promote(one, actor="ann", reason="first")
    registry.promote(two, actor="ann", reason="better")
    code = (
        "import sys; from rlhf.cli import main; "
        f"codes = [main([name, '--workspace', {str(root)!r}]) for name in ('rollback', 'status')]; "
        "sys.exit(codes != [0, 0] or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"rollback: {one} is the champion again" in done.stdout
    assert f"champion   {one}  runs/one" in done.stdout
    assert registry.alias(CHAMPION).artifact_id == one
