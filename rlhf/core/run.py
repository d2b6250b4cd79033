"""Run directories: one lock, one resolved config, one manifest, and a marker that is written last.

    OUT/config.yaml    resolved settings         OUT/metrics.jsonl   one row per step
    OUT/manifest.json  what it was made from     OUT/checkpoints/    training state, for --resume
    OUT/run.lock       held while a process runs OUT/FINISHED        present only when all of it is there

Nothing that exists is overwritten or deleted: a second launcher is refused, a finished run is left alone, and
--force renames the old directory to OUT.old-1, OUT.old-2, ...
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.core.config import Settings, settings_to_yaml
from rlhf.core.errors import BusyError, ConfigError, DataError
from rlhf.core.files import file_sha256, write_json, write_text
from rlhf.core.metrics import MetricsLog, finite
from rlhf.core.validation import shown

CONFIG, MANIFEST, METRICS, LOCK, FINISHED = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "run.lock",
    "FINISHED",
)
CHECKPOINTS = "checkpoints"
_TRACKED_PACKAGES = (
    "rlhf-loop",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "pydantic",
)
_NOT_HASHED = frozenset({LOCK, METRICS})
_MAX_DIFFERENCES = 6


@dataclass(frozen=True)
class Launch:
    """What the command line says about where and how to run, apart from the settings of the stage."""

    workspace: Path
    db: str
    out: Path | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    json: bool = False


class Workspace:
    """The folder that holds runs, snapshots and the feedback database. Paths in it are relative."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.runs = self.root / "runs"
        self.snapshots = self.root / "snapshots"

    @property
    def db_url(self) -> str:
        return f"sqlite:///{(self.root / 'feedback.db').as_posix()}"

    def relative(self, path: Path) -> str:
        """POSIX path relative to the workspace when inside it (so that it can be moved), else absolute."""
        absolute = Path(os.path.abspath(path))
        return (
            absolute.relative_to(self.root) if absolute.is_relative_to(self.root) else absolute
        ).as_posix()

    def resolve(self, text: str) -> Path:
        """The path that `relative` wrote down."""
        return self.root / text


class Parent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    sha256: str


class Manifest(BaseModel):
    """Where an artifact came from. Parents are paths relative to the workspace, with hashes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    stage: str
    created: str
    parents: dict[str, Parent] = Field(default_factory=dict)
    backbone: Parent | None = None
    snapshot: Parent | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    code_commit: str = ""
    seed: int = 0
    packages: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a run. Raises DataError when it is missing or not one."""
    path = Path(directory) / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a run directory") from error
    except ValidationError as error:
        raise DataError(f"{path}: is not a manifest of this version") from error


def is_finished(directory: Path) -> bool:
    return (Path(directory) / FINISHED).is_file()


class Run:
    """One run directory, held by a lock until the `with` block ends. Made by `Run.open` or `Run.start`.

    finished: it was finished before. resuming: it holds an unfinished run of the same settings.
    """

    metrics: MetricsLog
    manifest: Manifest
    finished: bool
    resuming: bool

    def __init__(
        self, path: Path, lock: FileLock | None, settings: Settings | None, made: list[Path]
    ) -> None:
        self.path, self._lock, self._settings = path, lock, settings
        self._made, self._begun, self._replaces = made, False, False

    @classmethod
    def start(
        cls,
        out: Path,
        *,
        stage: str,
        settings: Settings,
        launch: Launch,
        parents: dict[str, Path],
        seed: int,
    ) -> Run:
        """`open` and, unless the run is finished, `begin`: for stages that have read their inputs already."""
        run = cls.open(out, stage=stage, settings=settings, launch=launch, parents=parents, seed=seed)
        if not run.finished:
            run.begin()
        return run

    @classmethod
    def open(
        cls,
        out: Path,
        *,
        stage: str,
        settings: Settings,
        launch: Launch,
        parents: dict[str, Path],
        seed: int,
    ) -> Run:
        """Take `out` for a run of `stage`, before anything slow is read. Nothing is written until `begin`.

        New or empty directory: a fresh run. Finished with the same settings, seed and inputs: `finished` is
        True and the caller returns. Unfinished: continued with --resume only. --force sets the old directory
        aside and starts anew (with --resume on an unfinished run: continues it in spite of changed settings).
        Raises ConfigError for all else and BusyError when another process holds the directory.
        """
        path = Path(os.path.abspath(out))
        _refuse_foreign(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, _locked(path), settings, made)
        try:
            wanted = _describe(stage, settings, Workspace(launch.workspace), parents, seed)
            found = read_manifest(path) if (path / MANIFEST).exists() else None
            finished = is_finished(path)
            keep = found is not None and _may_keep(path, found, wanted, finished, launch)
            run._replaces = found is not None and not keep
            run.finished, run.resuming = keep and finished, keep and not finished
            run.manifest = found if run.finished and found is not None else wanted
            return run
        except BaseException:
            run.__exit__()
            raise

    @classmethod
    def follow(cls, path: Path, *, finished: bool, resuming: bool) -> Run:
        """The run that another process has opened: this one knows where it is and writes nothing there."""
        run = cls(path, None, None, [])
        run.finished, run.resuming, run._begun = finished, resuming, True
        return run

    def begin(self) -> None:
        """Write config and manifest: from here on `out` holds this run. With --force the old one is renamed first."""
        if self._lock is None or self._settings is None:
            return  # a follower's
        if self._replaces:
            self._lock = _set_aside(self.path, self._lock)
        self._begun = True
        write_text(self.path / CONFIG, settings_to_yaml(self._settings))
        write_json(self.path / MANIFEST, self.manifest)
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        _remove_leftovers(self.path)
        self.metrics = MetricsLog(self.path / METRICS)

    def finish(self, metrics: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
        """Write the manifest with the final metrics, then the marker. Call it when all else is on disk.

        NaN and Infinity become null: a figure that does not exist must not cost a run that is done.
        """
        self.manifest = self.manifest.model_copy(
            update={"metrics": finite(metrics), "extra": finite(extra or {})}
        )
        write_json(self.path / MANIFEST, self.manifest)
        write_text(self.path / FINISHED, _now() + "\n")
        self.finished = True

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._made and not self._begun:  # an input was refused: leave nothing behind
            (self.path / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another launcher may have put something there meanwhile
                for folder in self._made:
                    folder.rmdir()
        if self._lock is not None:
            self._lock.release()


def _refuse_foreign(path: Path) -> None:
    """Only an empty directory or one of our runs may be used; anything else is left untouched."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"--out {path}: is a file; expected a directory")
    names = {entry.name for entry in path.iterdir()} - {LOCK}
    strangers = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    # config.yaml alone is a run that was killed before its manifest was written
    if strangers - {CONFIG} and MANIFEST not in names:
        raise ConfigError(
            f"--out {path}: holds {sorted(strangers)[0]!r} and is not a run; choose another directory"
        )
    if MANIFEST in names:
        try:
            read_manifest(path)
        except DataError as error:
            raise ConfigError(
                f"--out {path}: its {MANIFEST} is not one of a run; choose another directory"
            ) from error


def _remove_leftovers(path: Path) -> None:
    """Half-written files and checkpoints of a process that was killed. Only the holder of the lock may do this."""
    for folder in (path / CHECKPOINTS).glob(".*-[0-9]*"):
        shutil.rmtree(folder)
    for file in path.rglob(".*.tmp"):
        file.unlink()


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"{path}: another process is running here (it holds {LOCK})") from error
    return lock


def _set_aside(path: Path, lock: FileLock) -> FileLock:
    """Rename the old run to the first free OUT.old-N and take the lock of a fresh directory."""
    number = 1
    while (old := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    os.rename(path, old)
    path.mkdir()
    fresh = _locked(path)
    lock.release()
    return fresh


def _may_keep(path: Path, found: Manifest, wanted: Manifest, finished: bool, launch: Launch) -> bool:
    """True to reuse the directory as it is, False to set it aside. Raises ConfigError for neither."""
    if launch.force and not (launch.resume and not finished and found.stage == wanted.stage):
        return False
    if found.stage != wanted.stage:
        raise ConfigError(
            f"{path}: holds a {found.stage} run, not {wanted.stage}; choose another --out, or --force"
        )
    changed = _differences(found, wanted)
    if finished and changed:
        raise ConfigError(
            f"{path}: is finished with other settings ({changed}); choose another --out, or --force"
        )
    if finished:
        return True
    if not launch.resume:
        raise ConfigError(
            f"{path}: holds an unfinished {found.stage} run; continue it with --resume, or --force"
        )
    if changed and not launch.force:
        raise ConfigError(f"{path}: settings changed since it began ({changed}); restore them, or --force")
    return True


def _differences(found: Manifest, wanted: Manifest) -> str:
    """'key: old -> new' for every setting, seed and input that differs; empty when none does."""
    old, new = _flat(found), _flat(wanted)
    changed = [key for key in {**old, **new} if old.get(key, "unset") != new.get(key, "unset")]
    parts = [f"{key}: {_brief(old.get(key, 'unset'))} -> {_brief(new.get(key, 'unset'))}" for key in changed]
    more = f", and {len(parts) - _MAX_DIFFERENCES} more" if len(parts) > _MAX_DIFFERENCES else ""
    return ", ".join(parts[:_MAX_DIFFERENCES]) + more


def _flat(manifest: Manifest) -> dict[str, Any]:
    flat: dict[str, Any] = {
        f"content of {name}": f"sha256 {parent.sha256[:12]}" for name, parent in manifest.parents.items()
    }
    flat["seed"] = manifest.seed

    def walk(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(manifest.settings, "")
    return flat


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _describe(
    stage: str, settings: Settings, workspace: Workspace, parents: dict[str, Path], seed: int
) -> Manifest:
    known = {
        name: Parent(path=workspace.relative(p), sha256=content_sha256(p)) for name, p in parents.items()
    }
    return Manifest(
        stage=stage,
        created=_now(),
        parents=known,
        backbone=known.get("backbone"),
        snapshot=known.get("snapshot"),
        settings=settings.model_dump(mode="json"),
        code_commit=code_version(),
        seed=seed,
        packages=_package_versions(),
        hardware=_hardware(),
    )


def content_sha256(path: Path) -> str:
    """Hash of a file or a directory. Raises DataError when neither is there."""
    if Path(path).is_dir():
        return directory_sha256(path)
    if Path(path).is_file():
        return file_sha256(path)
    raise DataError(f"{path}: no such file or directory")


def directory_sha256(path: Path) -> str:
    """Hash over the relative names and contents of all files, without lock, metrics and checkpoints."""
    root = Path(path)
    total = hashlib.sha256()
    for name, file in sorted(
        (file.relative_to(root).as_posix(), file) for file in root.rglob("*") if file.is_file()
    ):
        if name in _NOT_HASHED or name.startswith(f"{CHECKPOINTS}/") or name.endswith(".tmp"):
            continue
        total.update(f"{name}\0{file_sha256(file)}\n".encode())
    return total.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _TRACKED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    torch = sys.modules.get("torch")  # asked only where a stage has loaded it: this layer stays torch-free
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def code_version() -> str:
    """The git commit of a source checkout (with '+' for local changes), else the package version."""
    source = Path(__file__).resolve().parents[2]
    if (source / ".git").exists() and (source / "pyproject.toml").exists():
        try:
            commit = _git(source, "rev-parse", "HEAD")
            return commit + ("+" if _git(source, "status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.SubprocessError):
            pass  # no git, or no commit yet: the version says what can be said
    try:
        return f"rlhf-loop {importlib.metadata.version('rlhf-loop')}"
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
