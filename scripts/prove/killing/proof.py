"""The proof itself: so many kills and stops, spread over as many runs as it takes, and the verdict."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from killing.killer import IN_SAVE, RANDOM, STOP, Killer, Subject
from killing.lines import LAYERS


def prove(make_subject: Callable[[Path], Subject], argv: list[str], description: str | None) -> int:
    """The command line of a proof. make_subject writes model and data into a folder and returns what runs on them.

    Returns 1 when a run could not be resumed, came out different, or lost more than one save interval.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="by SIGKILL, half of them inside a save")
    parser.add_argument(
        "--stops", type=int, default=20, help="by SIGTERM at a random moment, beside the kills"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    # One thread: a fork would inherit a pool of threads that are not there.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    disable_progress_bar()
    started = time.monotonic()
    quota = {
        RANDOM: options.kills // 2,
        IN_SAVE: options.kills - options.kills // 2,
        STOP: options.stops,
    }
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        killer = Killer(root, make_subject(root), options.seed)
        num_runs = _kill_until(killer, quota)
    _report(killer, num_runs, time.monotonic() - started)
    return 1 if killer.failures else 0


def _kill_until(killer: Killer, quota: dict[str, int]) -> int:
    """Run after run until the quota is met or one of them cannot go on; returns how many were begun."""
    whole = killer.measure()
    runs = 0
    while any(killer.kills[kind] < wanted for kind, wanted in quota.items()):
        out = killer.root / f"run-{runs}"
        runs += 1
        try:
            killer.one_run(out, quota)
        except RuntimeError as error:
            killer.failures.append(str(error))
            break
        if found := killer.difference(whole, out):
            killer.failures.append(f"{out.name} differs from the run that was never stopped in {found}")
        shutil.rmtree(out)
        print(f"{sum(killer.kills.values())} kills and stops, {runs} runs", flush=True)
    return runs


def _report(killer: Killer, num_runs: int, seconds: float) -> None:
    for kind in (RANDOM, IN_SAVE):
        print(f"{killer.kills[kind]} kills {kind}")
    for layer in LAYERS:
        places = [place for place in killer.places if place.startswith(f"{layer}: ")]
        total = sum(killer.places[place] for place in places)
        print(f"  {total} on {len(places)} different lines of {layer}")
    stops = killer.kills[STOP]
    print(
        f"{stops} {STOP}: {killer.guarded} ended with 143 and a checkpoint of the moment, "
        f"{stops - killer.guarded} outside of the training loop"
    )
    subject = killer.subject
    print(
        f"{num_runs} runs finished after them, {len(killer.failures)} failures, largest loss {killer.largest_loss} "
        f"{subject.unit} (saved every {subject.save_every}), {seconds:.0f} s"
    )
    for text in killer.failures:
        print(f"FAILED: {text}")
