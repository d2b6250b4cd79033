"""`rlhf prefer` as a script: `python scripts/train_prefer.py --config FILE.yaml`."""

from __future__ import annotations

import sys

from rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["prefer", *sys.argv[1:]]))
