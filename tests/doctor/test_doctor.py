"""rlhf doctor: names what is broken and how to get it, survives a torch that cannot be loaded, changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feedback_app.store.engine import Store
from rlhf.cli import main
from rlhf.core.machine import available_memory
from rlhf.doctor import devices, machine, packages
from rlhf.doctor.check import Check
from rlhf.doctor.packages import installed_version, package_checks
from rlhf.doctor.run import _guarded
from rlhf.doctor.store import store_check

WORKING = """
import json
print(json.dumps({"version": "2.13.0", "cuda": None, "threads": 2, "gpus": [], "works": True, "capability": "AVX2"}))
"""


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """doctor(program, *options) -> (exit code, standard output, standard error); torch is what `program` says."""

    def call(program: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(devices.device_checks, "__defaults__", (program,))
        code = main(["doctor", "--workspace", str(tmp_path / "workspace"), *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_all_is_well_and_nothing_is_made(doctor: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = doctor(WORKING)
    assert (code, err) == (0, "")
    for text in ("ok      Python", "2.13.0 (CPU build), 2 threads", "GB available", "not there yet"):
        assert text in out, text
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "raise ImportError('libcudart.so.13: cannot open shared object file')",
            "libcudart.so.13: cannot open",
        ),
        ("import os; os.kill(os.getpid(), 11)", "by signal 11"),
        (WORKING.replace("True", "False"), "multiplies wrongly"),
        ("import time; time.sleep(60)", "did not load within 0.5 s"),
    ],
)
def test_a_broken_torch_is_a_line_and_exit_code_2(
    doctor: Callable[..., Any], program: str, said: str
) -> None:
    code, out, err = doctor(program, "--json", "--timeout-s", "0.5" if "sleep" in program else "60")
    assert code == 2
    assert err == "rlhf: error: doctor: 1 required, but not usable: torch; see the list above\n"
    found = json.loads(out)
    (torch,) = [check for check in found["checks"] if check["name"] == "torch" and check["state"] == "broken"]
    assert said in torch["found"]
    assert torch["advice"]
    assert not found["ok"]
    assert found["counts"]["broken"] == 1
    assert any(
        check["group"] == "Machine" for check in found["checks"]
    )  # the rest was looked at all the same


def test_packages_outside_their_bounds_are_named_with_what_gets_them() -> None:
    strange = {"torch": "1.0", "pyarrow": None, "optuna": None, "bitsandbytes": "0.50.0"}
    found = by_name(package_checks(lambda name: strange.get(name, installed_version(name))))
    assert found["torch"].state == "broken"
    assert found["torch"].found == "1.0; expected >=2.13,<3"
    assert found["torch"].advice == 'pip install "torch>=2.13,<3"'
    assert found["pyarrow"].found == "is missing; expected >=23,<27"
    assert found["tune"].state == "absent"
    assert found["tune"].advice == 'pip install "rlhf-loop[tune]"'
    assert found["qlora"].state == "ok"
    assert found["others"].state == "ok"


def test_a_newer_python_than_asked_for_is_fine_and_an_older_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.9.1")
    assert by_name(package_checks())["Python"].found == "3.9.1; expected >=3.11"
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.13.0rc1")
    assert by_name(package_checks())["Python"].state == "ok"


def test_a_part_that_cannot_be_loaded_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = _guarded("rlhf.doctor.not_there", "Feedback store", lambda module: module.store_check(""))
    assert check.state == "broken"
    assert "not_there" in check.found


def test_stores(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    url = f"sqlite:///{path}"
    assert store_check(url).state == "absent"
    assert not path.exists()
    Store.open(url).close()
    assert store_check(url).state == "ok"
    before = path.read_bytes()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001_first_schema'")
    old = store_check(url)
    assert old.state == "note"
    assert "older" in old.found
    assert store_check(url) == old  # looking migrates nothing
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_future'")
    assert "newer than this version" in store_check(url).found
    path.write_bytes(before[:5000] + b"\xff" * 9000 + before[14000:])
    assert store_check(url).state == "broken"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    assert "not a database" in store_check(url).found
    assert store_check("oracle://x/y").state == "broken"


def test_a_store_that_one_may_not_write(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        url = f"sqlite:////proc/{os.getpid()}/status"  # rights do not bind root; a file of the kernel does
    else:
        url = f"sqlite:///{tmp_path / 'feedback.db'}"
        Store.open(url).close()
        (tmp_path / "feedback.db").chmod(0o400)
    assert store_check(url).state == "broken"


def test_a_container_counts_and_what_it_caches_does_not(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:  1000 kB\nMemAvailable:  500 kB\nHugePages_Total: 0\n")
    assert available_memory(meminfo, cgroup) == (500 * 1024, 1000 * 1024)
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("300000\n")
    (cgroup / "memory.current").write_text("200000\n")
    (cgroup / "memory.stat").write_text("anon 90000\ninactive_file 50000\n")
    # 300,000 allowed, 200,000 in use of which 50,000 can be given back
    assert available_memory(meminfo, cgroup) == (150_000, 300_000)
    (cgroup / "memory.max").write_text("max\n")
    assert available_memory(meminfo, cgroup) == (500 * 1024, 1000 * 1024)
    assert available_memory(tmp_path / "none", cgroup) is None


def test_little_room_is_said(doctor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = doctor(WORKING, "--min-disk-gb", "1e9", "--min-memory-gb", "1e9")
    assert code == 0
    assert "little room for checkpoints" in out
    assert "rlhf plan" in out
    usage = machine.shutil.disk_usage("/")._replace(free=10_000_000)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    code, out, err = doctor(WORKING)
    assert code == 2
    assert "workspace" in err
