"""`rlhf reward` as a script: `python scripts/train_reward.py --config FILE.yaml`, or `accelerate launch` the same."""

from __future__ import annotations

import sys

from rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
