"""`rlhf doctor`: every check, as a table or as JSON. Ends with exit code 2 where something required is broken.

torch is loaded in a process of its own, and the part that looks at the store only if it can be loaded, so that a
broken installation is reported and does not end the report.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch
from rlhf.core.validation import one_line
from rlhf.doctor.check import Check, as_json, as_text
from rlhf.doctor.config import DoctorConfig
from rlhf.doctor.devices import device_checks
from rlhf.doctor.machine import machine_checks

PACKAGES, STORE = "rlhf.doctor.packages", "rlhf.doctor.store"


def run(config: DoctorConfig, launch: Launch) -> None:
    """Print what was found. Raises ConfigError naming what is broken."""
    checks = look(config, launch)
    if launch.json:
        print(json.dumps(as_json(checks), indent=2))
    else:
        print(as_text(checks))
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        raise ConfigError(
            f"doctor: {len(broken)} required, but not usable: {', '.join(broken)}; see the list above"
        )


def look(config: DoctorConfig, launch: Launch) -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks = _guarded(PACKAGES, "Python and packages", lambda module: module.package_checks())
    checks += device_checks(config.timeout_s)
    checks += machine_checks(config, launch.workspace)
    return checks + _guarded(STORE, "Feedback store", lambda module: [module.store_check(launch.db)])


def _guarded(name: str, group: str, work: Callable[..., list[Check]]) -> list[Check]:
    """The checks of a module, or one line where a package that it needs cannot be loaded."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything when it is loaded
        found = f"{type(error).__name__}: {one_line(str(error))[:300]}"
        return [
            Check(group, name.rpartition(".")[2], "broken", found, "pip install --force-reinstall rlhf-loop")
        ]
    return work(module)
