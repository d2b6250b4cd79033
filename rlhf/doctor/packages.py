"""What is installed against what our metadata asks for: required packages, and the extras."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlhf.doctor.check import Check

DISTRIBUTION = "rlhf-loop"
GROUP, EXTRAS_GROUP = "Python and packages", "Extras"
# Shown with their versions also when all is well; the others share one line.
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gradio", "sqlalchemy")
PURPOSE = {
    "qlora": "a base in 4 bits (--model.quantization nf4)",
    "lm-eval": "lm-evaluation-harness in `rlhf sft-eval` (--harness.tasks)",
    "tune": "searched settings (--tune N)",
    "presidio": "names and places in `rlhf prepare`",
    "privacy": "private training (--privacy.epsilon)",
    "trackers": "TensorBoard and Weights & Biases",
    "postgres": "a feedback store in PostgreSQL",
    "dev": "the tests",
}

Version = Callable[[str], str | None]


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_checks(version: Version = installed_version) -> list[Check]:
    """Python and every required package. One line for each that is missing or outside its bounds."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        advice = "install the project: pip install -e . in its folder, or make"
        return [_python(""), Check(GROUP, DISTRIBUTION, "broken", "is not installed", advice)]
    required = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    checks = [_python(metadata["Requires-Python"] or "")]
    checks.append(Check(GROUP, DISTRIBUTION, "ok", version(DISTRIBUTION) or "unknown version"))
    found = [_package(requirement, version) for requirement in required]
    checks += [check for check in found if check.name in SHOWN or check.state != "ok"]
    others = sum(check.name not in SHOWN and check.state == "ok" for check in found)
    checks.append(
        Check(GROUP, "others", "ok", f"{others} required packages are here and within their bounds")
    )
    return checks + _extras(requirements, version)


def _python(bounds: str) -> Check:
    found = platform.python_version()
    if bounds and found not in SpecifierSet(bounds, prereleases=True):
        advice = f"make a virtual environment with Python {bounds} and install there"
        return Check(GROUP, "Python", "broken", f"{found}; expected {bounds}", advice)
    return Check(GROUP, "Python", "ok", found)


def _package(requirement: Requirement, version: Version) -> Check:
    found, bounds = version(requirement.name), _bounds(requirement)
    advice = f'pip install "{_pip(requirement)}"'
    if found is None:
        return Check(GROUP, requirement.name, "broken", f"is missing; expected {bounds}", advice)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(GROUP, requirement.name, "broken", f"{found}; expected {bounds}", advice)
    return Check(GROUP, requirement.name, "ok", found)


def _extras(requirements: Iterable[Requirement], version: Version) -> list[Check]:
    """One line for each extra: here with its versions, or absent with the line that gets it."""
    parts: dict[str, list[Requirement]] = {}
    names = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        for name in names:
            if marker.evaluate({"extra": name}):
                parts.setdefault(name, []).append(requirement)
    return [_extra(name, parts.get(name, []), version) for name in names]


def _extra(name: str, requirements: list[Requirement], version: Version) -> Check:
    purpose = PURPOSE.get(name, "")
    lacking = [
        requirement
        for requirement in requirements
        if (found := version(requirement.name)) is None
        or not requirement.specifier.contains(found, prereleases=True)
    ]
    told = f"; it is for {purpose}" if purpose else ""
    if lacking:
        what = ", ".join(
            f"{r.name} is {version(r.name) or 'missing'} (expected {_bounds(r)})" for r in lacking
        )
        return Check(EXTRAS_GROUP, name, "absent", what + told, f'pip install "{DISTRIBUTION}[{name}]"')
    what = ", ".join(f"{r.name} {version(r.name)}" for r in requirements)
    return Check(EXTRAS_GROUP, name, "ok", what + told)


def _bounds(requirement: Requirement) -> str:
    """Lower bound first, as people write it."""
    parts = sorted(str(part) for part in requirement.specifier)
    return ",".join(reversed(parts)) or "any version"


def _pip(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{'' if not requirement.specifier else _bounds(requirement)}"
