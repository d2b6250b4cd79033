"""Bringing data in and out over the API: imports of files, snapshots and their files."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from feedback_app.accounts import Person
from feedback_app.config import ImportConfig
from feedback_app.exporting import default_out
from feedback_app.formats.detect import Format
from feedback_app.importing import import_file
from feedback_app.rest import models as m
from feedback_app.rest.callers import Reader, Writer
from feedback_app.rest.errors import Refused, missing
from feedback_app.rest.once import Key, once
from feedback_app.rest.work import find_project
from feedback_app.store.engine import Store
from feedback_app.store.schema import snapshots
from feedback_app.store.snapshots import FOLDERS, SPLITS, export_snapshot
from rlhf.core.errors import BusyError, DataError
from rlhf.core.files import Limits
from rlhf.core.records import TaskKind
from rlhf.core.tables import kind_of_file

UPLOAD_LIMITS = Limits(max_file_bytes=256 << 20)
NUM_SHOWN = 20
MANIFEST = "manifest.json"
_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "the file itself, up to 64 MiB",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def data_router(store: Store, snapshot_folder: Path | None) -> APIRouter:
    """The routes for files. Without a folder for snapshots none can be made."""
    router = APIRouter(tags=["data"])
    importing = threading.Lock()

    @router.post("/imports", status_code=201, openapi_extra=_UPLOAD)
    async def bring(
        person: Writer,
        request: Request,
        project: Annotated[str, Query(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")],
        filename: Annotated[
            str, Query(max_length=255, description="tells the kind of file, such as a.csv.gz")
        ],
        format: Annotated[Format, Query(description="as of `rlhf import --format`")] = "auto",
        task: Annotated[TaskKind | None, Query(description="kind of task to make of completions")] = None,
        gold: Annotated[bool, Query(description="the answers are the expected ones of gold items")] = False,
        overlap: Annotated[int, Query(ge=1, le=1000)] = 1,
        key: Key = None,
    ) -> m.Import:
        """Import the file that is the body of this request; the same rules as `rlhf import`."""
        kind = kind_of_file(Path(filename))
        packed = ".gz" if filename.endswith(".gz") else ""
        with tempfile.TemporaryDirectory(prefix="rlhf-import-") as folder:
            path = Path(folder) / f"upload.{kind}{packed}"
            digest = await _receive(request, path)
            settings = ImportConfig(
                file=path, project=project, format=format, task=task or "", gold=gold, overlap=overlap
            )

            def act() -> dict[str, Any]:
                return _import(store, settings, person, importing)

            told = f"{digest} {request.url.query}"
            done = await run_in_threadpool(once, store, person, request, key, told, act)
        return m.Import.model_validate(done)

    @router.get("/projects/{project}/snapshots")
    def made(person: Reader, project: m.Name) -> m.Snapshots:
        find_project(store, person, project)
        query = select(snapshots).where(snapshots.c.project_id == project)
        with store.read() as connection:
            rows = connection.execute(query.order_by(snapshots.c.created_at.desc()).limit(500)).all()
        return m.Snapshots(items=[_snapshot(row) for row in rows])

    @router.post("/projects/{project}/snapshots", status_code=201)
    def make(
        person: Writer, request: Request, project: m.Name, body: m.SnapshotIn, key: Key = None
    ) -> m.Snapshot:
        find_project(store, person, project)
        if snapshot_folder is None:
            raise Refused(409, "this server has no folder for snapshots", expected="rlhf app --workspace DIR")
        if body.train + body.validation > 1 + 1e-9:
            raise Refused(
                422, "train + validation is over 1", where="body", expected="shares that sum to 1 or less"
            )

        def act() -> dict[str, Any]:
            manifest = export_snapshot(
                store,
                default_out(snapshot_folder, project),
                project=project,
                seed=body.seed,
                fractions=(body.train, body.validation, max(0.0, 1 - body.train - body.validation)),
                unpaired_from_pairs=body.unpaired_from_pairs,
                actor=person.annotator_id,
            )
            return _snapshot(_row(store, manifest.snapshot_id)).model_dump()

        return m.Snapshot.model_validate(once(store, person, request, key, body, act))

    @router.get("/snapshots/{snapshot_id}")
    def one(person: Reader, snapshot_id: m.Id) -> m.Snapshot:
        return _snapshot(_row(store, snapshot_id))

    @router.get("/snapshots/{snapshot_id}/files/{name:path}", response_class=FileResponse)
    def download(person: Reader, snapshot_id: m.Id, name: str) -> FileResponse:
        """One of the snapshot's files, streamed."""
        row = _row(store, snapshot_id)
        if name not in _files(row):
            raise missing("file", name[:100].encode("utf-8", "replace").decode())
        media = "application/json" if name == MANIFEST else "application/jsonl"
        return FileResponse(Path(row.path) / name, media_type=media, filename=name.replace("/", "-"))

    return router


async def _receive(request: Request, path: Path) -> str:
    """Write the body to a file as it comes; the gate caps it. Returns its SHA-256."""
    digest = hashlib.sha256()
    try:
        with open(path, "wb") as file:
            async for piece in request.stream():
                digest.update(piece)
                await run_in_threadpool(file.write, piece)
    except ClientDisconnect as error:
        raise Refused(400, "the body broke off", where="body") from error
    return digest.hexdigest()


def _import(
    store: Store, settings: ImportConfig, person: Person, importing: threading.Lock
) -> dict[str, Any]:
    if not importing.acquire(blocking=False):
        raise BusyError("another import is running; try again when it is done")
    try:
        bad = settings.file.with_name("bad.jsonl")
        counts = import_file(
            store, settings, quarantine=bad, actor=person.annotator_id, limits=UPLOAD_LIMITS, silent=True
        )
    except DataError as error:
        # the name that we gave the file says nothing to whoever sent it
        raise DataError(
            str(error).replace(f"{settings.file}:", "the file:").replace(str(bad), "it")
        ) from error
    finally:
        importing.release()
    first = []
    if bad.exists():
        with open(bad, encoding="utf-8") as file:
            first = [json.loads(line) for line in islice(file, NUM_SHOWN)]
    names = ("rows", "bad_rows", "prompts", "completions", "tasks", "ratings", "known_ratings")
    found = {name: getattr(counts, name) for name in (*names, "corrected", "gold", "too_few")}
    return found | {"first_bad": [{"line": row["line"], "reason": row["reason"]} for row in first]}


def _row(store: Store, snapshot_id: str) -> Any:
    with store.read() as connection:
        row = connection.execute(select(snapshots).where(snapshots.c.snapshot_id == snapshot_id)).first()
    if row is None:
        raise missing("snapshot", snapshot_id)
    return row


def _files(row: Any) -> list[str]:
    """The files that a snapshot still has: by our names, and only while its manifest is the one we wrote."""
    folder = Path(row.path)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return []
    if not isinstance(manifest, dict) or manifest.get("snapshot_id") != row.snapshot_id:
        return []
    names = [f"{split}.jsonl" for split in SPLITS]
    names += [f"{name}/{split}.jsonl" for name in FOLDERS for split in SPLITS]
    return [MANIFEST, *(name for name in names if (folder / name).is_file())]


def _snapshot(row: Any) -> m.Snapshot:
    return m.Snapshot(
        snapshot_id=row.snapshot_id,
        project=row.project_id,
        content_hash=row.content_hash,
        created_at=row.created_at,
        simulated=bool(row.simulated),
        files=_files(row),
    )
