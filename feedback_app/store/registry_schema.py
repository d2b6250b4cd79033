"""The registry's tables: trained artifacts, the names that point at them, and the rounds of retraining.

They live in the feedback store's database so that a promotion (an alias moves, a round ends, a gate's
verdict is written) is one transaction, and so that a person's request for deletion can be followed from
their annotations through snapshots to the runs that learned from them.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from feedback_app.store.schema import METADATA

artifacts = Table(
    "artifacts",
    METADATA,
    Column("artifact_id", String(64), primary_key=True),
    Column("stage", String(32), nullable=False, index=True),
    # Relative to the workspace wherever possible, so that a moved workspace still works.
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("manifest", JSON, nullable=False),
    Column("snapshot_id", ForeignKey("snapshots.snapshot_id"), index=True),
    Column("simulated", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),
    # When somebody whose ratings it learned from asked for their deletion; it stays marked.
    Column("erasure_at", Double),
)

artifact_parents = Table(
    "artifact_parents",
    METADATA,
    Column("artifact_id", ForeignKey("artifacts.artifact_id"), primary_key=True),
    Column("parent_id", ForeignKey("artifacts.artifact_id"), primary_key=True, index=True),
    Column("role", String(32), primary_key=True),
)

aliases = Table(
    "aliases",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.artifact_id"), nullable=False),
    Column("updated_at", Double, nullable=False),
)

alias_moves = Table(
    "alias_moves",
    METADATA,
    Column("move_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False),
    Column("from_artifact", ForeignKey("artifacts.artifact_id")),
    # None where the name was taken away and given to nothing.
    Column("to_artifact", ForeignKey("artifacts.artifact_id")),
    Column("actor", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("moved_at", Double, nullable=False),
    Index("ix_alias_moves_name", "name", "moved_at"),
)

# Who may retrain. Each new leader counts the token up, and every step of a round checks it in its own transaction: a
# leader that was thought dead and is not cannot write any more.
leaders = Table(
    "leaders",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("token", Integer, nullable=False),
    Column("holder", String(128), nullable=False),
    Column("taken_at", Double, nullable=False),
)

rounds = Table(
    "rounds",
    METADATA,
    Column("round_id", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    # The last step that is done: see rlhf.loop.retrain.states.
    Column("state", String(16), nullable=False),
    # Hash of (snapshot, backbone, champion, code, settings), known from the snapshot on: no work is done twice.
    Column("work_key", String(64)),
    Column("config", JSON, nullable=False),
    Column("snapshot_id", ForeignKey("snapshots.snapshot_id")),
    Column("champion_id", ForeignKey("artifacts.artifact_id")),
    Column("reward_id", ForeignKey("artifacts.artifact_id")),
    Column("candidate_id", ForeignKey("artifacts.artifact_id")),
    Column("details", JSON, nullable=False, server_default="{}"),
    # Why it was rejected.
    Column("error", Text),
    Column("holder", String(128)),
    Column("heartbeat_at", Double),
    Column("started_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("ended_at", Double),
    Index("uq_rounds_work_key", "work_key", unique=True),
)

round_steps = Table(
    "round_steps",
    METADATA,
    Column("round_id", ForeignKey("rounds.round_id"), primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("token", Integer, nullable=False),
    Column("done_at", Double, nullable=False),
)

gate_verdicts = Table(
    "gate_verdicts",
    METADATA,
    Column("verdict_id", Integer, primary_key=True, autoincrement=True),
    Column("round_id", ForeignKey("rounds.round_id"), index=True),
    # None for what is asked before anything was trained.
    Column("artifact_id", ForeignKey("artifacts.artifact_id"), index=True),
    Column("gate", String(64), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("provisional", Boolean, nullable=False, server_default=text("false")),
    Column("value", Double),
    Column("low", Double),
    Column("high", Double),
    Column("threshold", Double),
    Column("reason", Text, nullable=False),
    Column("details", JSON, nullable=False, server_default="{}"),
    Column("decided_at", Double, nullable=False),
    UniqueConstraint("round_id", "gate", name="uq_gate_verdicts_round_gate"),
)
