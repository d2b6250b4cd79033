"""Who may import whom, read from the source, and what the torch-free layer really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("rlhf", "sft", "reward", "feedback_app")
TORCH_FREE_CORE = {
    "rlhf.core." + name
    for name in (
        *("callables", "config", "errors", "files", "html", "inputs", "metrics", "near_duplicates", "tables"),
        *("plots", "records", "reliability", "run", "settings", "splits", "stats", "turns", "validation"),
        *("extras", "figures", "grounding", "machine", "terms"),
    )
}
HEAVY = frozenset({"torch", "transformers", "trl", "peft", "accelerate", "datasets"})
# `rlhf.core` and `rlhf.ppo` must work without these.
NOT_IN_CORE_AND_PPO = frozenset({"trl", "datasets", "gradio"})

# room -> rooms of ours that it may import, beside itself
MAY_IMPORT = {
    "rlhf.core (torch-free)": set(),
    "rlhf.core": {"rlhf.core (torch-free)"},
    "feedback_app": {"rlhf.core (torch-free)"},
    "sft": {"rlhf.core (torch-free)", "rlhf.core"},
    "reward": {"rlhf.core (torch-free)", "rlhf.core"},
    "rlhf.ppo": {"rlhf.core (torch-free)", "rlhf.core", "reward"},
    "rlhf.preference": {"rlhf.core (torch-free)", "rlhf.core", "sft", "reward", "rlhf.ppo"},
    "rlhf.loop": {
        *(
            "rlhf.core (torch-free)",
            "rlhf.core",
            "sft",
            "reward",
            "rlhf.ppo",
            "rlhf.preference",
            "feedback_app",
        ),
    },
}
MAY_IMPORT["rlhf.doctor"] = {"rlhf.core (torch-free)", "feedback_app"}
MAY_IMPORT["rlhf.plan"] = {"rlhf.core (torch-free)", "rlhf.core", "sft", "reward", "rlhf.ppo"}
MAY_IMPORT["rlhf.after"] = {"rlhf.core (torch-free)", "rlhf.core", "sft", "reward", "rlhf.ppo"}
MAY_IMPORT["rlhf.serve"] = {*MAY_IMPORT["rlhf.loop"], "rlhf.loop"}
MAY_IMPORT["rlhf.demo"] = {*MAY_IMPORT["rlhf.loop"], "rlhf.loop"}
MAY_IMPORT["rlhf.cli"] = {*MAY_IMPORT["rlhf.demo"], "rlhf.demo"}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")}


def room(module: str) -> str:
    if module.startswith("rlhf.core"):
        return "rlhf.core (torch-free)" if module in TORCH_FREE_CORE | {"rlhf.core"} else "rlhf.core"
    if module == "rlhf":
        return "rlhf.core (torch-free)"  # an empty file
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "rlhf" else parts[0]


def imports(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether at run time and inside a function). `if TYPE_CHECKING` is not an import."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                    package = package[: len(package) - child.level + 1]
                    base = ".".join([*package, base] if base else package)
                # `from rlhf.core import files` imports a module, `from rlhf.core.files import x` a name
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield (full if full in MODULES else base), inside
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, True)
            else:
                yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    here = room(module)
    for imported, inside in imports(MODULES[module], module):
        if imported.split(".")[0] in PACKAGES:
            there = room(imported)
            assert there == here or there in MAY_IMPORT[here], (
                f"{module} ({here}) imports {imported} ({there})"
            )
        assert not inside or module == "rlhf.cli", f"{module} imports {imported} inside a function"
        outside = imported.split(".")[0]
        if here in ("rlhf.core (torch-free)", "feedback_app") or module.endswith(".config"):
            assert outside not in HEAVY, f"{module} must stay torch-free; it imports {imported}"
        if here in ("rlhf.core", "rlhf.ppo"):
            assert outside not in NOT_IN_CORE_AND_PPO, f"{module} imports {imported}"


def test_the_walk_sees_what_it_must_see(tmp_path: Path) -> None:
    source = "import torch\nfrom rlhf.core import files\nfrom . import x\n"
    source += "def f():\n    if 1:\n        import trl\n"
    source += "if TYPE_CHECKING:\n    import peft\n"
    path = tmp_path / "m.py"
    path.write_text(source)
    assert list(imports(path, "rlhf.ppo.m")) == [
        ("torch", False),
        ("rlhf.core.files", False),
        ("rlhf.ppo", False),
        ("trl", True),
    ]


def test_the_true_rubric_stays_out_of_reach_of_reward_and_ppo() -> None:
    """The rubric may be known to the world and its raters only, or the demonstration would prove nothing."""

    direct = {name: [imported for imported, _ in imports(path, name)] for name, path in MODULES.items()}

    def reached(start: str, seen: set[str]) -> set[str]:
        for imported in direct[start]:
            if imported in MODULES and imported not in seen:
                seen.add(imported)
                reached(imported, seen)
        return seen

    for module in MODULES:
        if room(module) in ("sft", "reward", "rlhf.ppo", "rlhf.loop", "feedback_app", "rlhf.core"):
            assert not any(name.startswith("rlhf.demo") for name in reached(module, set())), module


def test_package_files_are_empty_where_they_must_be() -> None:
    for name in ("rlhf/__init__.py", "rlhf/core/__init__.py"):
        assert (REPOSITORY / name).read_text() == ""


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_torch_free_core_loads_no_torch() -> None:
    modules = sorted(TORCH_FREE_CORE & set(MODULES))
    assert len(modules) >= 12
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY


def test_settings_load_no_torch() -> None:
    modules = sorted(name for name in MODULES if name.endswith(".config"))
    assert {"sft.config", "reward.config", "rlhf.ppo.config"} <= set(modules)
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY


def test_the_feedback_app_loads_no_torch() -> None:
    modules = sorted(name for name in MODULES if name.startswith("feedback_app") and "migrations" not in name)
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY


def test_help_is_instant_and_loads_no_stage() -> None:
    program = (
        "import sys\nfrom rlhf.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'tyro', 'pydantic', 'numpy', 'rich', 'yaml', 'sft', 'reward', 'feedback_app'}\n"
        "assert not heavy & {name.split('.')[0] for name in sys.modules}, sys.modules\n"
    )
    best = float("inf")
    for _ in range(3):  # the best of three: another process may be busy
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "rlhf <command>" in done.stdout
    assert best < 0.5
