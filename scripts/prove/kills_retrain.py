"""Does a round of retraining survive SIGKILL at any moment, and end in exactly one result?

    python scripts/prove/kills_retrain.py [--kills 100] [--seed 0] [--seconds 840]

A world in which a round takes seconds (see `retraining/tiny.py`). Raters answer between the rounds; a retrainer is
started in a fork of this process, which has everything loaded, and killed at a random moment; so are raters in the
middle of their answers. Half of the kills come at a random line of Python inside a transaction of a round (a move of a
name, a step, the begin of a round), since moments rarely hit those. After each kill the retrainer is started again.

After every kill: no name points at half of something, at most one round is open, no rating is lost. After every round:
it has exactly one end; a promoted one moved the champion exactly once; every champion traces to its ratings, and every
rating in a snapshot to the runs that learned from it. At the end: two retrainers at once, a rollback with its seconds,
and the same answers as before at temperature 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from retraining.killed import Killed
from transformers.utils.logging import disable_progress_bar


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=840, help="no further kill after so many")
    options = parser.parse_args(argv)
    # One thread: a fork would inherit a pool of threads that are not there.
    torch.set_num_threads(1)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        proof = Killed(Path(temporary).resolve() / "world", options.seed)
        proof.run(options.kills, options.seconds)
        proof.together()
        proof.rollback()
        proof.report()
    return 1 if proof.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
