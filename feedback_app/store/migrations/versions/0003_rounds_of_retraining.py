"""Rounds of retraining: who leads, which steps are done, what the gates measured, and marks of erased ratings.

Nothing has written rounds, alias moves or verdicts before this revision, so those tables are made anew where SQLite
could only alter a column by copying.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_rounds_of_retraining"
down_revision = "0002_gold_and_disputes"
branch_labels = None
depends_on = None

# Artifacts that learned from ratings which were erased before marks were kept.
MARK = """
UPDATE artifacts SET erasure_at = (SELECT max(created_at) FROM tombstones) WHERE artifact_id IN (
    WITH RECURSIVE learned (artifact_id) AS (
        SELECT f.artifact_id FROM artifacts f WHERE f.snapshot_id IN (
            SELECT m.snapshot_id FROM snapshot_members m JOIN tombstones d ON d.annotation_id = m.annotation_id)
        UNION
        SELECT p.artifact_id FROM artifact_parents p JOIN learned l ON l.artifact_id = p.parent_id)
    SELECT artifact_id FROM learned)
"""


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("erasure_at", sa.Double(), nullable=True))
    op.execute(MARK)
    op.add_column("rounds", sa.Column("work_key", sa.String(length=64), nullable=True))
    op.create_index("uq_rounds_work_key", "rounds", ["work_key"], unique=True)
    op.create_table(
        "leaders",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leaders")),
    )
    op.create_table(
        "round_steps",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("done_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_round_steps_round_id")),
        sa.PrimaryKeyConstraint("round_id", "state", name=op.f("pk_round_steps")),
    )
    _alias_moves()
    _gate_verdicts()


def downgrade() -> None:
    raise NotImplementedError("rounds of the newer schema have no place in the older one; restore a backup")


def _artifact(column: str, table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["artifacts.artifact_id"], name=op.f(f"fk_{table}_{column}"))


def _alias_moves() -> None:
    op.drop_table("alias_moves")
    op.create_table(
        "alias_moves",
        sa.Column("move_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_artifact", sa.String(length=64), nullable=True),
        sa.Column("to_artifact", sa.String(length=64), nullable=True),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.Double(), nullable=False),
        _artifact("from_artifact", "alias_moves"),
        _artifact("to_artifact", "alias_moves"),
        sa.PrimaryKeyConstraint("move_id", name=op.f("pk_alias_moves")),
    )
    op.create_index("ix_alias_moves_name", "alias_moves", ["name", "moved_at"], unique=False)


def _gate_verdicts() -> None:
    op.drop_table("gate_verdicts")
    op.create_table(
        "gate_verdicts",
        sa.Column("verdict_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=True),
        sa.Column("artifact_id", sa.String(length=64), nullable=True),
        sa.Column("gate", sa.String(length=64), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("provisional", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("decided_at", sa.Double(), nullable=False),
        _artifact("artifact_id", "gate_verdicts"),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_gate_verdicts_round_id")),
        sa.PrimaryKeyConstraint("verdict_id", name=op.f("pk_gate_verdicts")),
        sa.UniqueConstraint("round_id", "gate", name="uq_gate_verdicts_round_gate"),
    )
    op.create_index(op.f("ix_gate_verdicts_artifact_id"), "gate_verdicts", ["artifact_id"], unique=False)
    op.create_index(op.f("ix_gate_verdicts_round_id"), "gate_verdicts", ["round_id"], unique=False)
