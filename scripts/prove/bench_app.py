"""Is the rating desk quick when 200 people rate at once, and does it stay quick when the store is full?

    python scripts/prove/bench_app.py [--minutes 5] [--databases sqlite,postgresql] [--parts load,processes,size,files]

    load       200 raters send 25 answers a second together through the calls that the desk's page makes: session
               cookies, next, answer, heartbeat, drafts while they type. p95 < 150 ms, p99 < 500 ms, and afterwards
               nothing lost, doubled or over its quota
    processes  50 processes lease and submit at once on one store: no error
    size       1,000,000 ratings in the store make lease and submit at most 1.5 times as slow
    files      export of 50,000 ratings in 3 s with flat memory, import of 100,000 rows in 30 s

Client and server share the machine. PostgreSQL is a private one, durable (fsync on). Ends with 1 when a target is
missed. Run it on an idle machine: about 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from served import files, load, size, swarm
from served.figures import Verdicts
from served.postgres import Postgres

PARTS = ("load", "processes", "size", "files")
DATABASES = ("sqlite", "postgresql")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of load on each database")
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--rate", type=float, default=25.0, help="answers a second of all raters together")
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--ratings", type=int, default=1_000_000, help="in the full store")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--databases", default=",".join(DATABASES), help="comma-separated")
    options = parser.parse_args(argv)
    options.parts, options.databases = options.parts.split(","), options.databases.split(",")
    for given, known in ((options.parts, PARTS), (options.databases, DATABASES)):
        if unknown := set(given) - set(known):
            parser.error(f"found {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    verdicts = Verdicts()
    started = time.monotonic()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the start", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for database in options.databases:
            postgres = Postgres(durable=True) if database == "postgresql" else None
            try:
                measure(options, verdicts, database, postgres, Path(temporary))
            finally:
                if postgres is not None:
                    postgres.stop()
    print(f"{time.monotonic() - started:.0f} s, load average {os.getloadavg()[0]:.1f} at the end")
    return verdicts.exit_code()


def measure(
    options: argparse.Namespace, verdicts: Verdicts, database: str, postgres: Postgres | None, folder: Path
) -> None:
    """All parts on one database, each over a store of its own."""

    def url(name: str) -> str:
        return postgres.create(name) if postgres is not None else f"sqlite:///{folder}/{name}.db"

    if "load" in options.parts:
        seconds = options.minutes * 60
        asyncio.run(load.measure(url("load"), verdicts, database, options.raters, options.rate, seconds))
    if "processes" in options.parts:
        swarm.measure(url("processes"), verdicts, database, options.processes)
    if "size" in options.parts:
        size.measure(url("small"), url("full"), verdicts, database, options.ratings)
    if "files" in options.parts:
        files.measure((url("few"), url("many"), url("imported")), verdicts, database, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
