"""Does a run survive SIGKILL at any moment, and go on to the very same bits?

    python scripts/prove/kills.py [--kills 100] [--seed 0]

Short PPO runs of a tiny random model are killed over and over. Half of the kills come at a random moment of
the run's seconds. The other half fall inside a save: every line of Python that is executed between the start
and the end of a checkpoint, of the saved adapters and of the finished marker may be the last one. The lines of
checkpoint.py, of the rest of this project and of the libraries beneath share the chance equally; otherwise
nearly all kills would fall into torch.save. After each kill the run is resumed, and killed again or finished;
a finished run is compared with one that was never stopped, bit for bit: adapters, value head, samples, metrics
without times, and the whole training state with the optimizer. Ends with 1 when a run could not be resumed,
came out different, or lost more than one save interval.

One process imports torch; each attempt is a fork of it, which makes an attempt cost a second instead of ten.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers.utils.logging import disable_progress_bar

import rlhf.core.checkpoint as checkpoint_module
import rlhf.ppo.train as ppo_train
from rlhf.core.checkpoint import checkpoints, load_state, newest_valid
from rlhf.core.errors import RlhfError
from rlhf.core.metrics import read_metrics
from rlhf.core.run import METRICS, Launch, Run, is_finished, read_manifest
from rlhf.ppo.closed_form import toy_backbone
from rlhf.ppo.config import PPOConfig

REWARD = """
def threes(prompts, completions):
    return [text.count("t3") / 8 for text in completions]

def fours(prompts, completions):
    return [text.count("t4") / 8 for text in completions]
"""
# Figures of time differ from run to run, as do those of memory.
TIMES = ("seconds", "episodes_per_s", "tokens_per_s", "peak")
MAX_ATTEMPTS = 60
REPOSITORY = Path(ppo_train.__file__).resolve().parents[2]
LAYERS = ("checkpoint.py", "the rest of ours", "libraries")


def make_world(root: Path) -> PPOConfig:
    """A model, prompts and a reward in `root`, and settings with every kind of state that a run can have."""
    backbone = toy_backbone(0, vocab_size=24, pad_is_end=False)
    backbone.codec.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone.model.save_pretrained(root / "base")
    backbone.codec.tokenizer.save_pretrained(root / "base")
    for name, first in (("prompts", 3), ("eval", 15)):
        rows = [json.dumps({"prompt": f"t{i} t{i + 1} t{i % 5}"}) for i in range(first, first + 8)]
        (root / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "reward.py").write_text(REWARD, encoding="utf-8")
    return PPOConfig.model_validate(
        {
            "backbone": "base",
            "prompts": "prompts.jsonl",
            "eval_prompts": "eval.jsonl",
            "reward": f"{root}/reward.py:threes",
            "eval_reward": f"{root}/reward.py:fours",
            "score_normalization": "running",
            "num_iterations": 6,
            "num_prompts": 4,
            "samples_per_prompt": 2,
            "sampling": {"max_completion_tokens": 8},
            "lora": {"r": 4, "alpha": 8},
            "optim": {"lr": 5e-3, "schedule": "cosine", "warmup_steps": 2},
            "kl_target": 0.05,
            "kl_horizon": 20,
            "value_adapter": True,
            "model": {"device": "cpu"},
            "eval_every": 2,
            "save_every": 2,
        }
    )


def layer_of(path: Path) -> str:
    if not path.is_relative_to(REPOSITORY / "rlhf"):
        return "libraries"
    return "checkpoint.py" if path.name == "checkpoint.py" else "the rest of ours"


class SaveTracer:
    """Watches every line executed inside a save: counts them, or with rates ends the process at one of them.

    rates: the chance per line of each of LAYERS. The last line is noted in `note`.
    """

    def __init__(self, note: Path, rates: dict[str, float] | None, seed: int) -> None:
        self.counts = dict.fromkeys(LAYERS, 0)
        self._note, self._rates, self._random = note, rates, random.Random(seed)

    def install(self) -> None:
        for owner, name in (
            (checkpoint_module, "commit_checkpoint"),
            (ppo_train, "save_policy"),
            (Run, "finish"),
        ):
            setattr(owner, name, self._traced(getattr(owner, name)))

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any, **options: Any) -> Any:
            sys.settrace(self._trace)
            try:
                return function(*args, **options)
            finally:
                sys.settrace(None)

        return traced

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and frame.f_code.co_filename != __file__:
            path = Path(frame.f_code.co_filename)
            layer = layer_of(path)
            self.counts[layer] += 1
            if self._rates is not None and self._random.random() < self._rates[layer]:
                sys.settrace(None)
                where = f"{layer}: {path.name}:{frame.f_lineno} {frame.f_code.co_name}"
                self._note.write_text(where, encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace


class Killer:
    """Starts attempts at runs, kills them, and keeps the figures."""

    def __init__(self, root: Path, config: PPOConfig, seed: int) -> None:
        self.root, self.config = root, config
        self.random = random.Random(seed)
        self.log, self.note = root / "log.txt", root / "note.txt"
        self.rates: dict[str, float] | None = None
        self.seconds = 0.0
        self.kills = {"at a random moment": 0, "inside a save": 0}
        self.places: collections.Counter[str] = collections.Counter()
        self.largest_loss = 0
        self.failures: list[str] = []

    def attempt(self, out: Path, kill: str | None) -> int:
        """Run or resume `out` in a fork. Returns its exit code, -9 when it was killed."""
        self.note.unlink(missing_ok=True)
        seed, moment = self.random.randrange(2**32), self.random.uniform(0, self.seconds)
        sys.stdout.flush()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            rates = self.rates if kill == "inside a save" else None
            self._child(out, SaveTracer(self.note, rates, seed), traced=kill != "at a random moment")
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if kill == "at a random moment" and time.monotonic() - started >= moment:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)

    def _child(self, out: Path, tracer: SaveTracer, *, traced: bool) -> None:
        code = 1
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if traced:
                tracer.install()
            launch = Launch(workspace=self.root, db="", out=out, resume=True)
            ppo_train.run(self.config, launch)
            if self.rates is None:
                self.note.write_text(json.dumps(tracer.counts), encoding="utf-8")
            code = 0
        except RlhfError as error:
            print(f"error: {error}")
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def measure(self) -> Path:
        """The run that is never stopped, twice: lines per save, seconds, and that two such runs are equal."""
        first, second = self.root / "whole", self.root / "whole-2"
        for out in (first, second):
            started = time.monotonic()
            if self.attempt(out, None) != 0:
                raise SystemExit(f"the run that was never stopped failed:\n{self.log.read_text()}")
            self.seconds = time.monotonic() - started
        counts = json.loads(self.note.read_text(encoding="utf-8"))
        # Three kills are expected in the saves of a whole run, one in each layer.
        self.rates = {layer: 1 / count for layer, count in counts.items()}
        print(f"a run takes {self.seconds:.1f} s; lines that its saves execute: {counts}", flush=True)
        if found := difference(first, second):
            raise SystemExit(f"two runs that were never stopped differ: {found}")
        shutil.rmtree(second)
        return first

    def one_run(self, out: Path, quota: dict[str, int]) -> None:
        """Kill and resume one run until it is finished, and note every kill and everything that went wrong."""
        newest = 0
        for _ in range(MAX_ATTEMPTS):
            open_kinds = [kind for kind, wanted in quota.items() if self.kills[kind] < wanted]
            kind = self.random.choice(open_kinds) if open_kinds else None
            code = self.attempt(out, kind)
            if code == 0:
                return
            if code != -signal.SIGKILL or kind is None:
                raise RuntimeError(f"{out.name} ended with {code}: {last_line(self.log)}")
            self.kills[kind] += 1
            if kind == "inside a save":
                self.places[self.note.read_text(encoding="utf-8")] += 1
            before, newest = newest, self._newest_iteration(out)
            if newest < before:
                raise RuntimeError(f"{out.name} fell back from iteration {before} to {newest}")
        raise RuntimeError(f"{out.name} was not finished after {MAX_ATTEMPTS} attempts")

    def _newest_iteration(self, out: Path) -> int:
        """What a resume would begin with; notes how many logged iterations lie behind it."""
        damaged: list[str] = []
        folder = newest_valid(out / "checkpoints", warn=damaged.append)
        if damaged:
            self.failures.append(f"{out.name} holds {damaged[0]}")
        newest = load_state(folder)["iteration"] if folder is not None else 0
        rows = read_metrics(out / METRICS) if (out / METRICS).exists() else []
        lost = rows[-1]["step"] - newest if rows else 0
        self.largest_loss = max(self.largest_loss, lost)
        if lost > self.config.save_every:
            self.failures.append(f"{out.name} lost {lost} iterations; saved every {self.config.save_every}")
        return newest


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    return lines[-1] if lines else "no output"


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not name.startswith(TIMES)}


def equal(one: Any, two: Any) -> bool:
    """Nested values with tensors, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def difference(one: Path, two: Path) -> str:
    """The first thing in which two finished runs differ; empty when they are equal."""
    if not (is_finished(one) and is_finished(two)):
        return "one is not finished"
    for folder in ("adapter", "value", "samples"):
        names = sorted(p.name for p in (one / folder).iterdir())
        if names != sorted(p.name for p in (two / folder).iterdir()):
            return f"the files in {folder}"
        for name in names:
            if (one / folder / name).read_bytes() != (two / folder / name).read_bytes():
                return f"{folder}/{name}"
    rows = [[without_times(row) for row in read_metrics(out / METRICS)] for out in (one, two)]
    if rows[0] != rows[1]:
        return METRICS
    if without_times(read_manifest(one).metrics) != without_times(read_manifest(two).metrics):
        return "the manifest's metrics"
    states = [load_state(checkpoints(out / "checkpoints")[-1]) for out in (one, two)]
    return "" if equal(*states) else "the last checkpoint's state"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    # One thread: a fork would inherit a pool of threads that are not there.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    disable_progress_bar()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        killer = Killer(root, make_world(root), options.seed)
        whole = killer.measure()
        quota = {
            "at a random moment": options.kills // 2,
            "inside a save": options.kills - options.kills // 2,
        }
        runs = 0
        while sum(killer.kills.values()) < options.kills:
            out = root / f"run-{runs}"
            runs += 1
            try:
                killer.one_run(out, quota)
            except RuntimeError as error:
                killer.failures.append(str(error))
                break
            if found := difference(whole, out):
                killer.failures.append(f"{out.name} differs from the run that was never stopped in {found}")
            shutil.rmtree(out)
            print(f"{sum(killer.kills.values())} kills, {runs} runs", flush=True)
    for kind, count in killer.kills.items():
        print(f"{count} kills {kind}")
    for layer in LAYERS:
        places = [place for place in killer.places if place.startswith(f"{layer}: ")]
        total = sum(killer.places[place] for place in places)
        print(f"  {total} on {len(places)} different lines of {layer}")
    print(
        f"{runs} runs finished after them, {len(killer.failures)} failures, largest loss {killer.largest_loss} "
        f"iterations (saved every {killer.config.save_every}), {time.monotonic() - started:.0f} s"
    )
    for text in killer.failures:
        print(f"FAILED: {text}")
    return 1 if killer.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
