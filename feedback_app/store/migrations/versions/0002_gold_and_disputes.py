"""Gold items, repeats, disputes, two queues, and counters, so that nothing is counted while somebody rates.

Three views say which answers are meant:
- `latest_annotations`: the newest version of every answer that nobody asked to delete, whatever it was for;
- `current_annotations`: of these, what people said about the work itself (no gold, no repeats, no decisions);
- `final_annotations`: what is exported: a lead's newest decision where there is one, otherwise the current ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_gold_and_disputes"
down_revision = "0001_first_schema"
branch_labels = None
depends_on = None

LATEST = """
CREATE VIEW latest_annotations AS
SELECT a.*, coalesce(t.reason, '') AS reason, t.demonstration AS demonstration
FROM annotations a
LEFT JOIN annotation_texts t ON t.annotation_id = a.annotation_id
WHERE NOT EXISTS (SELECT 1 FROM annotations n WHERE n.supersedes = a.annotation_id)
  AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id)
"""
CURRENT = "CREATE VIEW current_annotations AS SELECT * FROM latest_annotations WHERE purpose = 'rate'"
# A decision of a person whose ratings were erased no longer stands; an older one of another lead does again.
DECISION = """
SELECT 1 FROM annotations o
WHERE o.task_id = a.task_id AND o.purpose = 'adjudicate'
  AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = o.annotation_id)
"""
FINAL = f"""
CREATE VIEW final_annotations AS
SELECT a.* FROM latest_annotations a
WHERE (a.purpose = 'rate' AND NOT EXISTS ({DECISION}))
   OR (a.purpose = 'adjudicate' AND NOT EXISTS (
       {DECISION} AND (o.created_at, o.annotation_id) > (a.created_at, a.annotation_id)))
"""

FILL_PROGRESS = """
INSERT INTO progress (annotator_id, project_id, num_answers, num_skips, num_timed, total_seconds, last_answer_at)
SELECT annotator_id, project_id, sum(answers), sum(skips), sum(timed), sum(seconds), max(answered_at)
FROM (
    SELECT annotator_id, project_id, count(*) AS answers, 0 AS skips, count(seconds) AS timed,
        coalesce(sum(seconds), 0.0) AS seconds, max(created_at) AS answered_at
    FROM annotations WHERE supersedes IS NULL AND origin <> 'import' GROUP BY annotator_id, project_id
    UNION ALL
    SELECT annotator_id, project_id, 0, count(*), 0, 0.0, CAST(NULL AS DOUBLE PRECISION)
    FROM skips GROUP BY annotator_id, project_id
) counted GROUP BY annotator_id, project_id
"""
# Opposite sides or thumbs; contradictions in rankings and scores show when their tasks are answered again.
FIND_DISPUTES = """
UPDATE tasks SET dispute = 'open' WHERE task_id IN (
    SELECT task_id FROM current_annotations
    WHERE preference IN ('first', 'second') OR thumb IS NOT NULL
    GROUP BY task_id HAVING count(DISTINCT coalesce(preference, thumb)) > 1)
"""


def upgrade() -> None:
    op.execute("DROP VIEW current_annotations")
    op.add_column("tasks", sa.Column("pool", sa.String(length=16), server_default="queue", nullable=False))
    op.add_column(
        "annotations", sa.Column("too_fast", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("annotations", sa.Column("gold_correct", sa.Boolean(), nullable=True))
    _progress()
    _indexes()
    for view in (LATEST, CURRENT, FINAL):
        op.execute(view)
    # Leases of answers that came without one carried the answer's origin here.
    op.execute("UPDATE leases SET purpose = 'rate' WHERE purpose <> 'rate'")
    op.execute("UPDATE tasks SET pool = 'repeat', is_open = false WHERE repeat_of IS NOT NULL")
    op.execute(
        "UPDATE tasks SET pool = 'gold', is_open = false "
        "WHERE task_id IN (SELECT task_id FROM gold_items WHERE retired_at IS NULL)"
    )
    op.execute(FILL_PROGRESS)
    op.execute(FIND_DISPUTES)


def downgrade() -> None:
    raise NotImplementedError("answers of the newer schema have no place in the older one; restore a backup")


def _progress() -> None:
    op.create_table(
        "progress",
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("num_answers", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_skips", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_timed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("last_answer_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_progress_annotator_id")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_progress_project_id")),
        sa.PrimaryKeyConstraint("annotator_id", "project_id", name=op.f("pk_progress")),
    )


def _indexes() -> None:
    op.drop_index("ix_tasks_queue", table_name="tasks")
    for name, table, columns, where in (
        ("ix_tasks_queue", "tasks", ["project_id", "selection", "queue_rank", "sort_key"], "is_open"),
        ("ix_tasks_gold", "tasks", ["project_id", "task_id"], "pool = 'gold'"),
        ("ix_tasks_disputed", "tasks", ["project_id", "sort_key"], "dispute = 'open'"),
        ("ix_annotations_decided", "annotations", ["task_id"], "purpose = 'adjudicate'"),
        (
            "ix_annotations_checks",
            "annotations",
            ["project_id", "purpose", "annotator_id"],
            "purpose <> 'rate'",
        ),
    ):
        op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
