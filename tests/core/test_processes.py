"""What each of several processes takes on, and what is refused before they meet. tests/ppo has them really meet."""

from __future__ import annotations

import pytest
import torch

from rlhf.core.errors import ConfigError
from rlhf.core.processes import ALONE, Processes, start_processes
from rlhf.core.sharding import device_mesh


@pytest.mark.parametrize(("count", "size"), [(7, 2), (8, 3), (2, 4), (0, 2), (5, 1)])
def test_shares_are_contiguous_and_differ_by_one_row_at_most(count: int, size: int) -> None:
    shares = [Processes(rank, size).share(count) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process group is made, values come back as they are, and errors keep their kind."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with start_processes("cpu") as processes:
        assert (processes.rank, processes.size, processes.device) == (0, 1, "cpu")
        assert not torch.distributed.is_initialized()
        parameter = torch.nn.Parameter(torch.ones(2))
        processes.sum_gradients([parameter])
        assert parameter.grad is None
        assert processes.gather_rows([1, 2]) == [1, 2]
        with pytest.raises(KeyError, match="mine"), processes.together():
            raise KeyError("mine")


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with (
        pytest.raises(ConfigError, match=f"WORLD_SIZE is 2, but {missing} is not set"),
        start_processes("cpu"),
    ):
        pass


def test_one_gpu_named_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"model\.device is cuda:1"), start_processes("cuda:1"):
        pass


def test_one_process_cannot_shard() -> None:
    with pytest.raises(ConfigError, match="shard_base needs several processes"):
        device_mesh(ALONE)
