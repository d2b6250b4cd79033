"""The first schema of the feedback store and the registry.

Tables, the triggers that keep annotations and the audit log append-only on SQLite and on PostgreSQL, and the
`current_annotations` view: the newest version of each answer that nobody asked to delete.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001_first_schema"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("annotations", "audit_log")
CURRENT_ANNOTATIONS = """
CREATE VIEW current_annotations AS
SELECT a.*, coalesce(t.reason, '') AS reason, t.demonstration AS demonstration
FROM annotations a
LEFT JOIN annotation_texts t ON t.annotation_id = a.annotation_id
WHERE NOT EXISTS (SELECT 1 FROM annotations n WHERE n.supersedes = a.annotation_id)
  AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id)
"""


def upgrade() -> None:
    _people()
    _projects()
    _work()
    _leases()
    _annotations()
    _snapshots_and_audit()
    _registry()
    _rounds()
    if op.get_bind().dialect.name == "postgresql":
        _postgres_triggers()
    else:
        _sqlite_triggers()
    op.execute(CURRENT_ANNOTATIONS)


def downgrade() -> None:
    raise NotImplementedError("the first schema has no older one; restore a backup instead")


def _sqlite_triggers() -> None:
    for table in APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {action} refused'); END"
            )
    op.execute(
        "CREATE TRIGGER annotation_texts_refuse_update BEFORE UPDATE ON annotation_texts "
        "WHEN NEW.annotation_id <> OLD.annotation_id OR NEW.reason <> '' OR NEW.demonstration IS NOT NULL "
        "OR NEW.erased_at IS NULL "
        "BEGIN SELECT RAISE(ABORT, 'annotation_texts can only be erased'); END"
    )
    op.execute(
        "CREATE TRIGGER annotation_texts_refuse_delete BEFORE DELETE ON annotation_texts "
        "BEGIN SELECT RAISE(ABORT, 'annotation_texts can only be erased'); END"
    )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION rlhf_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP; END $$"
    )
    op.execute(
        "CREATE FUNCTION rlhf_only_erase() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'UPDATE' THEN IF NEW.annotation_id = OLD.annotation_id AND NEW.reason = '' "
        "AND NEW.demonstration IS NULL AND NEW.erased_at IS NOT NULL THEN RETURN NEW; END IF; END IF; "
        "RAISE EXCEPTION 'annotation_texts can only be erased'; END $$"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION rlhf_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION rlhf_refuse_change()"
        )
    op.execute(
        "CREATE TRIGGER annotation_texts_only_erase BEFORE UPDATE OR DELETE ON annotation_texts "
        "FOR EACH ROW EXECUTE FUNCTION rlhf_only_erase()"
    )


def _people() -> None:
    op.create_table(
        "annotators",
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.Column("erased_at", sa.Double(), nullable=True),
        sa.Column("preferences", sa.JSON(), server_default="{}", nullable=False),
        sa.CheckConstraint("role IN ('annotator', 'lead', 'admin')", name=op.f("ck_annotators_role")),
        sa.PrimaryKeyConstraint("annotator_id", name=op.f("pk_annotators")),
        sa.UniqueConstraint("name", name=op.f("uq_annotators_name")),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("address", sa.String(length=64), server_default="", nullable=False),
        sa.Column("user_agent", sa.String(length=256), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_sessions_annotator_id")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_annotator_id"), "sessions", ["annotator_id"], unique=False)
    op.create_table(
        "login_attempts",
        sa.Column("attempt_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("succeeded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("attempted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("pk_login_attempts")),
    )
    op.create_index(
        "ix_login_attempts_throttle", "login_attempts", ["name", "address", "attempted_at"], unique=False
    )
    op.create_table(
        "one_time_links",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_one_time_links_annotator_id")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_one_time_links")),
    )
    op.create_index(op.f("ix_one_time_links_annotator_id"), "one_time_links", ["annotator_id"], unique=False)
    op.create_table(
        "api_tokens",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("scopes", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_api_tokens_annotator_id")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_api_tokens")),
    )
    op.create_index(op.f("ix_api_tokens_annotator_id"), "api_tokens", ["annotator_id"], unique=False)


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("title", sa.String(length=256), nullable=False),
        sa.Column("purpose", sa.String(length=16), server_default="collect", nullable=False),
        sa.Column("simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("settings", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("archived_at", sa.Double(), nullable=True),
        sa.CheckConstraint("purpose IN ('collect', 'evaluate')", name=op.f("ck_projects_purpose")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_projects")),
    )
    op.create_table(
        "rubrics",
        sa.Column("rubric_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=256), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("attributes", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["created_by"], ["annotators.annotator_id"], name=op.f("fk_rubrics_created_by")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_rubrics_project_id")),
        sa.PrimaryKeyConstraint("rubric_id", name=op.f("pk_rubrics")),
        sa.UniqueConstraint("project_id", "version", name=op.f("uq_rubrics_project_id_version")),
    )
    op.create_table(
        "project_members",
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_project_members_annotator_id")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name=op.f("fk_project_members_project_id")
        ),
        sa.PrimaryKeyConstraint("project_id", "annotator_id", name=op.f("pk_project_members")),
    )


def _work() -> None:
    op.create_table(
        "prompts",
        sa.Column("prompt_id", sa.String(length=64), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(length=256), server_default="", nullable=False),
        sa.Column("group_id", sa.String(length=256), nullable=False),
        sa.Column("context", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_id", name=op.f("pk_prompts")),
    )
    op.create_index(op.f("ix_prompts_group_id"), "prompts", ["group_id"], unique=False)
    op.create_table(
        "completions",
        sa.Column("completion_id", sa.String(length=64), nullable=False),
        sa.Column("prompt_id", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("model_id", sa.String(length=512), server_default="", nullable=False),
        sa.Column("sampling", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.prompt_id"], name=op.f("fk_completions_prompt_id")),
        sa.PrimaryKeyConstraint("completion_id", name=op.f("pk_completions")),
    )
    op.create_index(op.f("ix_completions_model_id"), "completions", ["model_id"], unique=False)
    op.create_index(op.f("ix_completions_prompt_id"), "completions", ["prompt_id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("prompt_id", sa.String(length=64), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("num_done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_held", sa.Integer(), server_default="0", nullable=False),
        sa.Column("is_open", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("queue_rank", sa.Double(), server_default="0", nullable=False),
        sa.Column("selection", sa.String(length=16), server_default="uniform", nullable=False),
        sa.Column("sort_key", sa.Integer(), nullable=False),
        sa.Column("simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("repeat_of", sa.String(length=64), nullable=True),
        sa.Column("repeat_for", sa.String(length=64), nullable=True),
        sa.Column("dispute", sa.String(length=16), nullable=True),
        sa.Column("settings", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('pairwise', 'ranking', 'scores', 'demonstration', 'thumbs')", name=op.f("ck_tasks_kind")
        ),
        sa.CheckConstraint(
            "num_done >= 0 AND num_held >= 0 AND num_done + num_held <= overlap", name=op.f("ck_tasks_quota")
        ),
        sa.CheckConstraint("overlap >= 1", name=op.f("ck_tasks_overlap")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_tasks_project_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.prompt_id"], name=op.f("fk_tasks_prompt_id")),
        sa.ForeignKeyConstraint(
            ["repeat_for"], ["annotators.annotator_id"], name=op.f("fk_tasks_repeat_for")
        ),
        sa.ForeignKeyConstraint(["repeat_of"], ["tasks.task_id"], name=op.f("fk_tasks_repeat_of")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_project", "tasks", ["project_id", "created_at"], unique=False)
    op.create_index(op.f("ix_tasks_prompt_id"), "tasks", ["prompt_id"], unique=False)
    op.create_index(
        "ix_tasks_queue",
        "tasks",
        ["project_id", "queue_rank", "sort_key"],
        unique=False,
        sqlite_where=sa.text("is_open"),
        postgresql_where=sa.text("is_open"),
    )
    op.create_table(
        "task_completions",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("completion_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completions.completion_id"], name=op.f("fk_task_completions_completion_id")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_task_completions_task_id")),
        sa.PrimaryKeyConstraint("task_id", "position", name=op.f("pk_task_completions")),
    )
    op.create_index(
        op.f("ix_task_completions_completion_id"), "task_completions", ["completion_id"], unique=False
    )
    op.create_table(
        "gold_items",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("expected", sa.JSON(), nullable=False),
        sa.Column("explanation", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=True),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["created_by"], ["annotators.annotator_id"], name=op.f("fk_gold_items_created_by")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_gold_items_task_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_gold_items")),
    )


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("purpose", sa.String(length=16), server_default="rate", nullable=False),
        sa.Column("shown_order", sa.JSON(), nullable=False),
        sa.Column("client_key", sa.String(length=128), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('active', 'submitted', 'skipped', 'expired', 'released')", name=op.f("ck_leases_state")
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_leases_annotator_id")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_leases_project_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_leases_task_id")),
        sa.PrimaryKeyConstraint("lease_id", name=op.f("pk_leases")),
        sa.UniqueConstraint("client_key", name=op.f("uq_leases_client_key")),
    )
    op.create_index(
        "ix_leases_active",
        "leases",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_index(
        "ix_leases_held",
        "leases",
        ["annotator_id", "project_id", "state"],
        unique=False,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_index(
        "ix_leases_person_project", "leases", ["annotator_id", "project_id", "created_at"], unique=False
    )
    op.create_index("ix_leases_person_task", "leases", ["task_id", "annotator_id", "state"], unique=False)
    op.create_table(
        "drafts",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_drafts_annotator_id")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_drafts_task_id")),
        sa.PrimaryKeyConstraint("task_id", "annotator_id", name=op.f("pk_drafts")),
    )
    op.create_table(
        "skips",
        sa.Column("skip_id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("client_key", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_skips_annotator_id")
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_skips_lease_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_skips_project_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_skips_task_id")),
        sa.PrimaryKeyConstraint("skip_id", name=op.f("pk_skips")),
        sa.UniqueConstraint("client_key", name=op.f("uq_skips_client_key")),
    )
    op.create_index("ix_skips_person", "skips", ["annotator_id", "project_id"], unique=False)
    op.create_index(op.f("ix_skips_task_id"), "skips", ["task_id"], unique=False)


def _annotations() -> None:
    op.create_table(
        "annotations",
        sa.Column("annotation_id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=True),
        sa.Column("client_key", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("supersedes", sa.String(length=64), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("preference", sa.String(length=16), nullable=True),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("ranking", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("scores", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("thumb", sa.String(length=8), nullable=True),
        sa.Column("flags", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("shown_order", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("purpose", sa.String(length=16), server_default="rate", nullable=False),
        sa.Column("rubric_id", sa.String(length=64), nullable=True),
        sa.Column("origin", sa.String(length=16), server_default="desk", nullable=False),
        sa.Column("surplus", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('pairwise', 'ranking', 'scores', 'demonstration', 'thumbs')",
            name=op.f("ck_annotations_kind"),
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_annotations_annotator_id")
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.lease_id"], name=op.f("fk_annotations_lease_id")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name=op.f("fk_annotations_project_id")
        ),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubrics.rubric_id"], name=op.f("fk_annotations_rubric_id")),
        sa.ForeignKeyConstraint(
            ["supersedes"], ["annotations.annotation_id"], name=op.f("fk_annotations_supersedes")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_annotations_task_id")),
        sa.PrimaryKeyConstraint("annotation_id", name=op.f("pk_annotations")),
        sa.UniqueConstraint("client_key", name=op.f("uq_annotations_client_key")),
        sa.UniqueConstraint("supersedes", name=op.f("uq_annotations_supersedes")),
        sa.UniqueConstraint(
            "task_id", "annotator_id", "version", name=op.f("uq_annotations_task_id_annotator_id_version")
        ),
    )
    op.create_index(
        "ix_annotations_person", "annotations", ["annotator_id", "project_id", "created_at"], unique=False
    )
    op.create_index("ix_annotations_project", "annotations", ["project_id", "created_at"], unique=False)
    op.create_table(
        "annotation_texts",
        sa.Column("annotation_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("demonstration", sa.Text(), nullable=True),
        sa.Column("erased_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotation_id"], ["annotations.annotation_id"], name=op.f("fk_annotation_texts_annotation_id")
        ),
        sa.PrimaryKeyConstraint("annotation_id", name=op.f("pk_annotation_texts")),
    )
    op.create_table(
        "tombstones",
        sa.Column("annotation_id", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("requested_by", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotation_id"], ["annotations.annotation_id"], name=op.f("fk_tombstones_annotation_id")
        ),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.annotator_id"], name=op.f("fk_tombstones_annotator_id")
        ),
        sa.ForeignKeyConstraint(
            ["requested_by"], ["annotators.annotator_id"], name=op.f("fk_tombstones_requested_by")
        ),
        sa.PrimaryKeyConstraint("annotation_id", name=op.f("pk_tombstones")),
    )
    op.create_index(op.f("ix_tombstones_annotator_id"), "tombstones", ["annotator_id"], unique=False)


def _snapshots_and_audit() -> None:
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("fractions", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("simulated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.project_id"], name=op.f("fk_snapshots_project_id")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
    )
    op.create_index(op.f("ix_snapshots_project_id"), "snapshots", ["project_id"], unique=False)
    op.create_table(
        "snapshot_members",
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("annotation_id", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotation_id"], ["annotations.annotation_id"], name=op.f("fk_snapshot_members_annotation_id")
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.snapshot_id"], name=op.f("fk_snapshot_members_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "annotation_id", name=op.f("pk_snapshot_members")),
    )
    op.create_index(
        op.f("ix_snapshot_members_annotation_id"), "snapshot_members", ["annotation_id"], unique=False
    )
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("happened_at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), server_default="", nullable=False),
        sa.Column("details", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("row_hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("row_hash", name=op.f("uq_audit_log_row_hash")),
    )
    op.create_index("ix_audit_log_subject", "audit_log", ["subject"], unique=False)


def _registry() -> None:
    op.create_table(
        "artifacts",
        sa.Column("artifact_id", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.snapshot_id"], name=op.f("fk_artifacts_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("artifact_id", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_sha256"), "artifacts", ["sha256"], unique=False)
    op.create_index(op.f("ix_artifacts_snapshot_id"), "artifacts", ["snapshot_id"], unique=False)
    op.create_index(op.f("ix_artifacts_stage"), "artifacts", ["stage"], unique=False)
    op.create_table(
        "artifact_parents",
        sa.Column("artifact_id", sa.String(length=64), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.artifact_id"], name=op.f("fk_artifact_parents_artifact_id")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["artifacts.artifact_id"], name=op.f("fk_artifact_parents_parent_id")
        ),
        sa.PrimaryKeyConstraint("artifact_id", "parent_id", "role", name=op.f("pk_artifact_parents")),
    )
    op.create_index(op.f("ix_artifact_parents_parent_id"), "artifact_parents", ["parent_id"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("artifact_id", sa.String(length=64), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.artifact_id"], name=op.f("fk_aliases_artifact_id")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("move_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_artifact", sa.String(length=64), nullable=True),
        sa.Column("to_artifact", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["from_artifact"], ["artifacts.artifact_id"], name=op.f("fk_alias_moves_from_artifact")
        ),
        sa.ForeignKeyConstraint(
            ["to_artifact"], ["artifacts.artifact_id"], name=op.f("fk_alias_moves_to_artifact")
        ),
        sa.PrimaryKeyConstraint("move_id", name=op.f("pk_alias_moves")),
    )
    op.create_index("ix_alias_moves_name", "alias_moves", ["name", "moved_at"], unique=False)


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("champion_id", sa.String(length=64), nullable=True),
        sa.Column("reward_id", sa.String(length=64), nullable=True),
        sa.Column("candidate_id", sa.String(length=64), nullable=True),
        sa.Column("details", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("holder", sa.String(length=128), nullable=True),
        sa.Column("heartbeat_at", sa.Double(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["artifacts.artifact_id"], name=op.f("fk_rounds_candidate_id")
        ),
        sa.ForeignKeyConstraint(
            ["champion_id"], ["artifacts.artifact_id"], name=op.f("fk_rounds_champion_id")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.project_id"], name=op.f("fk_rounds_project_id")),
        sa.ForeignKeyConstraint(["reward_id"], ["artifacts.artifact_id"], name=op.f("fk_rounds_reward_id")),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.snapshot_id"], name=op.f("fk_rounds_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("number", name=op.f("uq_rounds_number")),
    )
    op.create_table(
        "gate_verdicts",
        sa.Column("verdict_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=True),
        sa.Column("artifact_id", sa.String(length=64), nullable=False),
        sa.Column("gate", sa.String(length=64), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.artifact_id"], name=op.f("fk_gate_verdicts_artifact_id")
        ),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_gate_verdicts_round_id")),
        sa.PrimaryKeyConstraint("verdict_id", name=op.f("pk_gate_verdicts")),
    )
    op.create_index(op.f("ix_gate_verdicts_artifact_id"), "gate_verdicts", ["artifact_id"], unique=False)
    op.create_index(op.f("ix_gate_verdicts_round_id"), "gate_verdicts", ["round_id"], unique=False)
