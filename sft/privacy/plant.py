"""`rlhf canaries FILE`: demonstrations with invented secrets among them, to train on and to test afterwards."""

from __future__ import annotations

import random
from pathlib import Path

from rlhf.core.errors import ConfigError
from rlhf.core.files import atomic_folder, read_rows, write_jsonl
from rlhf.core.inputs import find_path
from rlhf.core.run import Launch
from sft.privacy.canaries import CANARIES_FILE, DATA_FILE, draw_canaries, planted_rows
from sft.privacy.config import CanariesConfig


def run(config: CanariesConfig, launch: Launch) -> None:
    """Writes OUT/data.jsonl, shuffled, and OUT/canaries.json. Raises ConfigError where OUT exists."""
    source = find_path(config.data, launch)
    out = launch.out or source.with_name(f"{source.name.split('.')[0]}-with-canaries")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ConfigError(f"{out}: exists already; choose another --out")
    rows = [row for _, row in read_rows(source)]
    found = draw_canaries(
        config.repeats,
        config.per_group,
        prompt=config.prompt,
        completion=config.completion,
        alphabet=config.alphabet,
        separator=config.separator,
        num_symbols=config.secret_symbols,
        sft_seed=config.sft_seed,
        seed=config.seed,
    )
    planted = planted_rows(found)
    mixed = [*rows, *planted]
    random.Random(f"order {config.seed}").shuffle(mixed)
    with atomic_folder(Path(out)) as folder:
        write_jsonl(folder / DATA_FILE, mixed)
        found.save(folder / CANARIES_FILE)
    times = ", ".join(f"{config.per_group} x {repeats}" for repeats in config.repeats)
    print(
        f"canaries: {len(planted)} rows among {len(rows)} ({times} times), {config.per_group} canaries kept out; train "
        f"on {out / DATA_FILE} with seed {config.sft_seed}, then test with {out / CANARIES_FILE}"
    )
