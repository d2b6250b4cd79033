"""The tables of the feedback store: who rates, what is rated, what they said, and what was exported.

Rules that the tables themselves keep, whatever the code above them does:
- `annotations` and `audit_log` are append-only: triggers (in the migrations) refuse UPDATE and DELETE.
- Text a person wrote lives in `annotation_texts`, which a trigger allows to be emptied and nothing else, so
  that a person's words can be erased on request without rewriting history.
- `tasks.num_done + tasks.num_held <= tasks.overlap` is a CHECK: no task can go over its quota.
- `client_key` is unique: a retried submit finds its first row.

Times are seconds since the epoch, UTC (`*_at`). Ids are text. JSON columns hold what nobody searches by.
The registry of models (artifacts, aliases, rounds) shares this metadata; see `registry_schema`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ROLES = ("annotator", "lead", "admin")
KINDS = ("pairwise", "ranking", "scores", "demonstration", "thumbs")
LEASE_STATES = ("active", "submitted", "skipped", "expired", "released")
# Where a task is handed out from: the queue; the gold items, mixed in by a draw; or a repeat for one person.
POOLS = ("queue", "gold", "repeat")
# What an answer is for. Only "rate" takes a place of a task and counts in agreement and in exports; a lead's
# decision ("adjudicate") stands in exports in place of the answers it decides between.
PURPOSES = ("rate", "gold", "repeat", "adjudicate")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def _id(name: str, target: str | None = None, **options: object) -> Column[str]:
    options.setdefault("nullable", bool(options.pop("optional", False)))
    return Column(name, String(64), *([ForeignKey(target)] if target else []), **options)  # type: ignore[arg-type]


# --- people ---------------------------------------------------------------------------------------------

annotators = Table(
    "annotators",
    METADATA,
    _id("annotator_id", primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", Text),
    _flag("simulated"),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
    Column("erased_at", Double),
    Column("preferences", JSON, nullable=False, server_default="{}"),
    _one_of("role", ROLES),
)

sessions = Table(
    "sessions",
    METADATA,
    Column("token_hash", String(64), primary_key=True),
    _id("annotator_id", "annotators.annotator_id", index=True),
    Column("created_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("address", String(64), nullable=False, server_default=""),
    Column("user_agent", String(256), nullable=False, server_default=""),
)

login_attempts = Table(
    "login_attempts",
    METADATA,
    Column("attempt_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    _flag("succeeded"),
    Column("attempted_at", Double, nullable=False),
    Index("ix_login_attempts_throttle", "name", "address", "attempted_at"),
)

one_time_links = Table(
    "one_time_links",
    METADATA,
    Column("token_hash", String(64), primary_key=True),
    _id("annotator_id", "annotators.annotator_id", index=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
)

api_tokens = Table(
    "api_tokens",
    METADATA,
    Column("token_hash", String(64), primary_key=True),
    _id("annotator_id", "annotators.annotator_id", index=True),
    Column("label", String(128), nullable=False),
    Column("scopes", JSON, nullable=False, server_default="[]"),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("last_used_at", Double),
    Column("revoked_at", Double),
)

# --- what is rated --------------------------------------------------------------------------------------

projects = Table(
    "projects",
    METADATA,
    Column("project_id", String(128), primary_key=True),
    Column("title", String(256), nullable=False),
    # "evaluate" projects hold blind comparisons of models; their ratings are never exported for training.
    Column("purpose", String(16), nullable=False, server_default="collect"),
    _flag("simulated"),
    # what was changed from the defaults of `projects.ProjectSettings`
    Column("settings", JSON, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
    Column("archived_at", Double),
    _one_of("purpose", ("collect", "evaluate")),
)

rubrics = Table(
    "rubrics",
    METADATA,
    _id("rubric_id", primary_key=True),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("title", String(256), nullable=False),
    Column("text", Text, nullable=False),
    # [{"name", "definition", "anchors": {"1": ..., "5": ...}}] for score tasks
    Column("attributes", JSON, nullable=False, server_default="[]"),
    Column("created_at", Double, nullable=False),
    _id("created_by", "annotators.annotator_id", optional=True),
    UniqueConstraint("project_id", "version"),
)

project_members = Table(
    "project_members",
    METADATA,
    Column("project_id", ForeignKey("projects.project_id"), primary_key=True),
    _id("annotator_id", "annotators.annotator_id", primary_key=True),
    Column("added_at", Double, nullable=False),
)

prompts = Table(
    "prompts",
    METADATA,
    _id("prompt_id", primary_key=True),
    Column("messages", JSON, nullable=False),
    Column("source", String(256), nullable=False, server_default=""),
    Column("group_id", String(256), nullable=False, index=True),
    Column("context", Text),
    Column("metadata", JSON, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
)

completions = Table(
    "completions",
    METADATA,
    _id("completion_id", primary_key=True),
    _id("prompt_id", "prompts.prompt_id", index=True),
    Column("text", Text, nullable=False),
    Column("model_id", String(512), nullable=False, server_default="", index=True),
    Column("sampling", JSON, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
)

tasks = Table(
    "tasks",
    METADATA,
    _id("task_id", primary_key=True),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    Column("kind", String(16), nullable=False),
    _id("prompt_id", "prompts.prompt_id", index=True),
    Column("overlap", Integer, nullable=False),
    Column("num_done", Integer, nullable=False, server_default="0"),
    Column("num_held", Integer, nullable=False, server_default="0"),
    Column("is_open", Boolean, nullable=False, server_default=text("true")),
    Column("pool", String(16), nullable=False, server_default="queue"),
    # Two queues, "uniform" and "priority", from which a draw takes turns; in each the smaller rank goes first.
    Column("queue_rank", Double, nullable=False, server_default="0"),
    Column("selection", String(16), nullable=False, server_default="uniform"),
    Column("sort_key", Integer, nullable=False),
    _flag("simulated"),
    _id("repeat_of", "tasks.task_id", optional=True),
    _id("repeat_for", "annotators.annotator_id", optional=True),
    # NULL, "open" (the answers contradict each other) or "decided" (by a lead)
    Column("dispute", String(16)),
    Column("settings", JSON, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),
    _one_of("kind", KINDS),
    CheckConstraint("overlap >= 1", name="overlap"),
    CheckConstraint("num_done >= 0 AND num_held >= 0 AND num_done + num_held <= overlap", name="quota"),
    Index(
        "ix_tasks_queue",
        "project_id",
        "selection",
        "queue_rank",
        "sort_key",
        sqlite_where=text("is_open"),
        postgresql_where=text("is_open"),
    ),
    Index(
        "ix_tasks_gold",
        "project_id",
        "task_id",
        sqlite_where=text("pool = 'gold'"),
        postgresql_where=text("pool = 'gold'"),
    ),
    Index(
        "ix_tasks_disputed",
        "project_id",
        "sort_key",
        sqlite_where=text("dispute = 'open'"),
        postgresql_where=text("dispute = 'open'"),
    ),
    Index("ix_tasks_project", "project_id", "created_at"),
)

task_completions = Table(
    "task_completions",
    METADATA,
    _id("task_id", "tasks.task_id", primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _id("completion_id", "completions.completion_id", index=True),
)

gold_items = Table(
    "gold_items",
    METADATA,
    _id("task_id", "tasks.task_id", primary_key=True),
    Column("expected", JSON, nullable=False),
    Column("explanation", Text, nullable=False, server_default=""),
    Column("created_at", Double, nullable=False),
    _id("created_by", "annotators.annotator_id", optional=True),
    Column("retired_at", Double),
)

# --- what people said -----------------------------------------------------------------------------------

leases = Table(
    "leases",
    METADATA,
    _id("lease_id", primary_key=True),
    _id("task_id", "tasks.task_id"),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    _id("annotator_id", "annotators.annotator_id"),
    Column("state", String(16), nullable=False),
    Column("purpose", String(16), nullable=False, server_default="rate"),
    Column("shown_order", JSON, nullable=False),
    Column("client_key", String(128), unique=True),
    Column("created_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("closed_at", Double),
    _one_of("state", LEASE_STATES),
    Index("ix_leases_person_task", "task_id", "annotator_id", "state"),
    Index("ix_leases_person_project", "annotator_id", "project_id", "created_at"),
    Index(
        "ix_leases_active",
        "expires_at",
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
    Index(
        "ix_leases_held",
        "annotator_id",
        "project_id",
        "state",
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
)

annotations_table = Table(
    "annotations",
    METADATA,
    _id("annotation_id", primary_key=True),
    _id("task_id", "tasks.task_id"),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    _id("annotator_id", "annotators.annotator_id"),
    _id("lease_id", "leases.lease_id", optional=True),
    Column("client_key", String(128), nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    _id("supersedes", "annotations.annotation_id", optional=True, unique=True),
    Column("kind", String(16), nullable=False),
    Column("preference", String(16)),
    Column("strength", Integer),
    Column("ranking", JSON(none_as_null=True)),
    Column("scores", JSON(none_as_null=True)),
    Column("thumb", String(8)),
    Column("flags", JSON, nullable=False, server_default="[]"),
    Column("shown_order", JSON, nullable=False),
    Column("seconds", Double),
    Column("purpose", String(16), nullable=False, server_default="rate"),
    _id("rubric_id", "rubrics.rubric_id", optional=True),
    Column("origin", String(16), nullable=False, server_default="desk"),
    _flag("surplus"),
    _flag("simulated"),
    Column("created_at", Double, nullable=False),
    # faster than the project's min_seconds at that time
    _flag("too_fast"),
    # the verdict on a gold answer, NULL for every other
    Column("gold_correct", Boolean),
    _one_of("kind", KINDS),
    UniqueConstraint("task_id", "annotator_id", "version"),
    Index("ix_annotations_project", "project_id", "created_at"),
    Index("ix_annotations_person", "annotator_id", "project_id", "created_at"),
    Index(
        "ix_annotations_decided",
        "task_id",
        sqlite_where=text("purpose = 'adjudicate'"),
        postgresql_where=text("purpose = 'adjudicate'"),
    ),
    Index(
        "ix_annotations_checks",
        "project_id",
        "purpose",
        "annotator_id",
        sqlite_where=text("purpose <> 'rate'"),
        postgresql_where=text("purpose <> 'rate'"),
    ),
)

annotation_texts = Table(
    "annotation_texts",
    METADATA,
    _id("annotation_id", "annotations.annotation_id", primary_key=True),
    Column("reason", Text, nullable=False, server_default=""),
    Column("demonstration", Text),
    Column("erased_at", Double),
)

skips = Table(
    "skips",
    METADATA,
    _id("skip_id", primary_key=True),
    _id("task_id", "tasks.task_id", index=True),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False),
    _id("annotator_id", "annotators.annotator_id"),
    _id("lease_id", "leases.lease_id"),
    Column("client_key", String(128), nullable=False, unique=True),
    Column("reason", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_skips_person", "annotator_id", "project_id"),
)

drafts = Table(
    "drafts",
    METADATA,
    _id("task_id", "tasks.task_id", primary_key=True),
    _id("annotator_id", "annotators.annotator_id", primary_key=True),
    Column("content", JSON, nullable=False),
    Column("updated_at", Double, nullable=False),
)

# How far each person is in each project, so that nothing on the way of a rating has to count answers.
progress = Table(
    "progress",
    METADATA,
    _id("annotator_id", "annotators.annotator_id", primary_key=True),
    Column("project_id", ForeignKey("projects.project_id"), primary_key=True),
    # answers given at the desk or through the API (not imported ones, not corrections)
    Column("num_answers", Integer, nullable=False, server_default="0"),
    Column("num_skips", Integer, nullable=False, server_default="0"),
    # the answers that came with a time, and their sum in seconds
    Column("num_timed", Integer, nullable=False, server_default="0"),
    Column("total_seconds", Double, nullable=False, server_default="0"),
    Column("last_answer_at", Double),
)

tombstones = Table(
    "tombstones",
    METADATA,
    _id("annotation_id", "annotations.annotation_id", primary_key=True),
    _id("annotator_id", "annotators.annotator_id", index=True),
    Column("reason", Text, nullable=False, server_default=""),
    _id("requested_by", "annotators.annotator_id", optional=True),
    Column("created_at", Double, nullable=False),
)

# --- what was exported, and who did what ----------------------------------------------------------------

snapshots = Table(
    "snapshots",
    METADATA,
    _id("snapshot_id", primary_key=True),
    Column("project_id", ForeignKey("projects.project_id"), nullable=False, index=True),
    Column("content_hash", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("fractions", JSON, nullable=False),
    Column("counts", JSON, nullable=False),
    _flag("simulated"),
    Column("created_at", Double, nullable=False),
)

snapshot_members = Table(
    "snapshot_members",
    METADATA,
    _id("snapshot_id", "snapshots.snapshot_id", primary_key=True),
    _id("annotation_id", "annotations.annotation_id", primary_key=True, index=True),
    Column("split", String(16), nullable=False),
)

audit_log = Table(
    "audit_log",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("happened_at", Double, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False, server_default=""),
    Column("details", JSON, nullable=False, server_default="{}"),
    Column("previous_hash", String(64), nullable=False),
    Column("row_hash", String(64), nullable=False, unique=True),
    Index("ix_audit_log_subject", "subject"),
)
