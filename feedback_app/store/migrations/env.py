"""Alembic environment: runs inside the connection that `Store.open` (or the alembic command) hands over."""

from __future__ import annotations

from alembic import context

from feedback_app.store import registry_schema  # noqa: F401  (registers its tables on METADATA)
from feedback_app.store.schema import METADATA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=METADATA,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
