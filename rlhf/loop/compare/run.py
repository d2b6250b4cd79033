"""`rlhf compare`: which way of tuning is the best on one's own data, at an equal price?

    for each method and seed, in a process of its own:  train within the budget -> answer the held-out prompts -> judge
    table, page and pictures; every finished run goes into the registry

All methods start from the same backbone and answer the same prompts with the same random numbers; the judge compares
their answers with the backbone's own. Training alone is charged to the budget: not loading, evaluating or saving. The
ratings and the reward model are given to all; what they cost is not in the table. OUT/compare.html, OUT/compare.json;
the command again with --resume goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from feedback_app.store.engine import Store
from reward.data import load_preferences
from rlhf.core.callables import ScoringFunction, is_callable_spec
from rlhf.core.errors import ConfigError, GuardStop, RlhfError, Stopped
from rlhf.core.files import read_numbered, read_rows, write_json, write_text
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_model, find_path, required
from rlhf.core.records import Prompt
from rlhf.core.run import MANIFEST, Launch, Run, Workspace, is_finished
from rlhf.core.stats import bootstrap_mean
from rlhf.loop.compare.config import BEST_OF_N, CompareConfig
from rlhf.loop.compare.method import Place, run_method, settings_of
from rlhf.loop.compare.page import page, seen_words
from rlhf.loop.models import ModelPool
from rlhf.loop.registry import Artifact, Registry
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rewards import RewardSources, content_of
from rlhf.preference.config import OFFLINE

NEEDS = {
    "backbone": "the supervised model",
    "heldout": "a JSONL of prompts that all answer",
    "judge": "file.py:function or a reward run",
}
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and the parent's memory


def run(config: CompareConfig, launch: Launch) -> None:
    """Compare and write OUT. Raises GuardStop at the end where a method failed; the others are in the table."""
    parents = _inputs(config, launch)
    out = launch.out or Workspace(launch.workspace).runs / "compare"
    names = [
        (method, seed, method if config.seeds == 1 else f"{method}-{seed}")
        for method in config.names
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    for method, seed, _ in names:
        if method != BEST_OF_N:
            settings_of(config, method, seed)  # what does not fit is said before anything is trained
    if launch.dry_run:
        print(
            f"compare: would run {', '.join(name for *_, name in names)} with {config.budget} each, into {out}"
        )
        return
    with Run.start(
        out, stage="compare", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"compare: {out} is already finished; see {out / 'compare.html'}")
            return
        failed: dict[str, str] = {}
        for number, (method, seed, name) in enumerate(names, start=1):
            print(f"\ncompare: [{number}/{len(names)}] {name}", flush=True)
            try:
                _do(config, launch, record.path, method, seed, name)
            except GuardStop as error:
                failed[name] = str(error)
                print(f"compare: {name} failed: {error}", file=sys.stderr)
        result = collect(config, launch, record.path, [(m, n) for m, _, n in names if n not in failed])
        artifacts = _register(config, launch, record.path, names)
        result |= {
            "failed": failed,
            "num_seen": _num_seen(parents, config.seed),
            "artifacts": {name: artifact.artifact_id for name, artifact in artifacts.items()},
            "simulated": _learned_from_programs(config, launch)
            or any(artifact.simulated for artifact in artifacts.values()),
        }
        write_json(record.path / "compare.json", result)
        write_text(record.path / "compare.html", page(result, config))
        if result["num_seen"]:
            print(f"compare: {seen_words(result['num_seen'])}")
        for row in result["methods"]:
            print(f"compare: {sentence(row)}")
        print(f"compare: the page is {record.path / 'compare.html'}")
        if failed:
            raise GuardStop(
                f"compare: {', '.join(failed)} failed; the others are in {record.path / 'compare.html'}"
            )
        record.finish({row["method"]: row["win_rate"] for row in result["methods"]})


def _inputs(config: CompareConfig, launch: Launch) -> dict[str, Path]:
    """Everything that the chosen methods need, looked up. Raises ConfigError and DataError."""
    needs = dict(NEEDS)
    online = [name for name in config.names if name not in OFFLINE and name != BEST_OF_N]
    if any(name in OFFLINE for name in config.names):
        needs["snapshot"] = "the ratings, for the offline methods"
    if online or BEST_OF_N in config.names:
        needs["reward"] = "what the online methods maximise"
    if online:
        needs["prompts"] = "a JSONL of prompts that the online methods train on"
    parents = {}
    for name, what in needs.items():
        value = required(getattr(config, name), name, what)
        if name in ("snapshot", "prompts", "heldout"):
            parents[name] = find_path(value, launch)
    backbone = Path(find_model(str(config.backbone), launch))
    if backbone.exists():
        parents["backbone"] = backbone
    if config.judge == "people":
        raise ConfigError(
            "--judge people is for one candidate at a time; expected file.py:function or a reward run"
        )
    # Looked up now: a judge that is not there must not be noticed behind the first method's training.
    judge, reward = str(config.judge), config.reward if "reward" in needs else None
    for text in (judge, str(reward)):
        if is_callable_spec(text):
            ScoringFunction(text)
    pool = ModelPool(config.model, launch)
    found = {"judge": content_of(judge) if is_callable_spec(judge) else pool.reward_path(judge)}
    if reward:
        found |= RewardSources.find(PPOConfig(reward=reward), launch).parents
    if online and config.eval_prompts:
        found["eval_prompts"] = find_path(config.eval_prompts, launch)
    return parents | {name: path for name, path in found.items() if path is not None}


def _learned_from_programs(config: CompareConfig, launch: Launch) -> bool:
    """Whether the snapshot that was named says that its ratings are simulated."""
    if config.snapshot is None:
        return False
    manifest = find_path(config.snapshot, launch) / MANIFEST
    if not manifest.is_file():
        return False
    return bool(json.loads(manifest.read_text(encoding="utf-8")).get("simulated"))


def _num_seen(parents: dict[str, Path], seed: int) -> int:
    """How many held-out prompts stand, word for word, among those that a method learned from or was chosen by."""
    seen = {
        prompt.messages
        for name in ("prompts", "eval_prompts")
        if name in parents
        for _, prompt in read_numbered(parents[name], Prompt)
    }
    if "snapshot" in parents:
        rated = load_preferences(parents["snapshot"], seed)
        seen |= {preference.prompt for split, _, preference in rated if split != "test"}
    return sum(prompt.messages in seen for _, prompt in read_numbered(parents["heldout"], Prompt))


# ---- running -------------------------------------------------------------------------------------------------


def _do(config: CompareConfig, launch: Launch, out: Path, method: str, seed: int, name: str) -> None:
    if Place.of(out, name).result.exists():
        print(f"compare: {name} is already finished")
    elif config.isolate:
        _in_process_of_its_own(config, launch, out, method, seed, name)
    else:
        run_method(config, launch, out, method, seed, name)


def received(pipe: Connection) -> object:
    """What was sent through a pipe whose other end is closed; None for nothing: the end of a pipe polls as readable."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def _in_process_of_its_own(
    config: CompareConfig, launch: Launch, out: Path, method: str, seed: int, name: str
) -> None:
    """Raises what ended the process. A signal is passed on, and waited for: the method saves its state first."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_child, args=(config, launch, out, method, seed, name, theirs), name=name)
    with SignalGuard() as guard:
        process.start()
        theirs.close()
        told = False
        while process.is_alive():
            process.join(0.2)
            # Ctrl-C on a terminal reaches the child by itself; a second signal would end it without a checkpoint.
            if guard.received == signal.SIGTERM and not told:
                process.terminate()
                told = True
        guard.check()
    found = received(ours)
    if isinstance(found, RlhfError):
        raise found
    if process.exitcode:
        raise GuardStop(f"{name} ended with exit code {process.exitcode}; see its output above")


def _child(
    config: CompareConfig, launch: Launch, out: Path, method: str, seed: int, name: str, pipe: Any
) -> None:
    try:
        run_method(config, launch, out, method, seed, name)
    except Stopped as error:
        sys.exit(error.exit_code)
    except RlhfError as error:
        pipe.send(error)
        sys.exit(error.exit_code)


# ---- what came out -------------------------------------------------------------------------------------------


def collect(config: CompareConfig, launch: Launch, out: Path, runs: list[tuple[str, str]]) -> dict[str, Any]:
    """The figures of all methods, the best first. runs: (method, name) of those that are finished."""
    heldout = read_numbered(find_path(str(config.heldout), launch), Prompt)
    group_of = {prompt.prompt_id: prompt.group_id for _, prompt in heldout}
    methods = []
    for method in config.names:
        names = [name for of, name in runs if of == method]
        if names:
            methods.append(_row(config, out, method, names, group_of))
    methods.sort(key=lambda row: -row["win_rate"])
    return {"methods": methods, "budget": config.budget, "seeds": config.seeds, "judge": str(config.judge)}


def _row(
    config: CompareConfig, out: Path, method: str, names: list[str], group_of: dict[str, str]
) -> dict[str, Any]:
    """One method: the wins of all its runs together, means of the rest. group_of: the group of each prompt id."""
    results = [json.loads(Place.of(out, name).result.read_text(encoding="utf-8")) for name in names]
    wins, prompts = [], []
    for name in names:
        for _, pair in read_rows(Place.of(out, name).evaluation / "pairs.jsonl"):
            wins.append(float(pair["win"]))
            prompts.append(pair["prompt_id"])
    # As in `rlhf evaluate`: prompts of one group are not independent, nor are the runs' answers to one prompt.
    win = bootstrap_mean(wins, groups=[group_of[prompt] for prompt in prompts], seed=config.seed)
    row: dict[str, Any] = {
        "method": method,
        "win_rate": win.mean,
        "win_rate_low": win.low,
        "win_rate_high": win.high,
        "better": win.low > 0.5,
        "num_prompts": len(set(prompts)),
        "single_win_rates": [result["win_rate"] for result in results],
        "kl_is_bound": any(result.get("kl_is_bound") for result in results),
    }
    means = (
        *("kl", "length_before", "length_after", "distinct_2_before", "distinct_2_after", "finished_after"),
        *("score_before", "score_after", "seconds_training", "tokens_spent", "peak_memory_mib"),
        *("answers_drawn", "tokens_per_answer"),
    )
    for key in means:
        values = [result[key] for result in results if result.get(key) is not None]
        row[key] = sum(values) / len(values) if values else None
    row["used"] = _share(config, row)
    row["settings"] = [text for text in config.overrides if text.split(".")[0] in (method, "all")]
    return row


def _share(config: CompareConfig, row: dict[str, Any]) -> float:
    """How much of the budget the training used: an offline method ends when its validation loss no longer falls."""
    if config.budget_tokens is not None:
        return float(row["tokens_spent"] / config.budget_tokens)
    return float(row["seconds_training"] / (config.budget_seconds or 1.0))


def sentence(row: dict[str, Any]) -> str:
    """One method in one line."""
    verdict = "better than the backbone" if row["better"] else "not shown to be better than the backbone"
    if row["win_rate_high"] < 0.5:
        verdict = "worse than the backbone"
    interval = f"{row['win_rate']:.3f} [{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}]"
    return f"{row['method']:<11} win rate {interval}: {verdict}"


def _register(
    config: CompareConfig, launch: Launch, out: Path, names: list[tuple[str, int, str]]
) -> dict[str, Artifact]:
    """The artifact of every finished run, by its name; best-of-n trains nothing and has none."""
    if not config.register_runs:
        return {}
    with Store.open(launch.db) as store:
        registry = Registry(store, Workspace(launch.workspace))
        return {
            name: registry.register(place.run)
            for *_, name in names
            if is_finished((place := Place.of(out, name)).run)
        }
