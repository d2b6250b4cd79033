"""The feedback store: schema, engine, tasks, annotations, snapshots and migrations."""
