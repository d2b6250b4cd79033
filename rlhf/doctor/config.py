"""Settings of `rlhf doctor`. Torch-free."""

from __future__ import annotations

from pydantic import Field

from rlhf.core.config import Settings


class DoctorConfig(Settings):
    """Look at this machine, this installation, the workspace and the feedback store, and change none of them."""

    min_memory_gb: float = Field(
        2.0, ge=0, description="less available memory than this gets a note, in 10^9 bytes"
    )
    min_disk_gb: float = Field(5.0, ge=0, description="less free disk than this gets a note, in 10^9 bytes")
    timeout_s: float = Field(120.0, gt=0, description="longest time that loading torch may take")
