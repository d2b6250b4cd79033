"""`rlhf retrain`: one round if one is due (--once), or round after round until a signal comes (--watch)."""

from __future__ import annotations

import time
from pathlib import Path

from feedback_app.store.engine import Store
from feedback_app.store.projects import project_settings
from rlhf.core.backbone import check_model_dir
from rlhf.core.callables import ScoringFunction
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.files import read_jsonl
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_model, find_path, require_one_process, required
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, Workspace
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.leader import Leader
from rlhf.loop.retrain.machine import Machine, MakeStages, Outcome
from rlhf.loop.retrain.report import REPORT_HTML, write_reports
from rlhf.loop.retrain.rounds import Round, Rounds
from rlhf.loop.retrain.stages import Stages
from rlhf.loop.retrain.trigger import look
from rlhf.ppo.rewards import RuleList

TICK_S = 0.5


def run(config: RetrainConfig, launch: Launch) -> None:
    """Nothing due is no error; a rejected round is a result too. Raises BusyError where somebody retrains already."""
    require_one_process("retrain")
    check(config, launch)
    with Store.open(launch.db, create=False) as store:
        with store.read() as connection:
            project_settings(connection, config.project)
        if launch.dry_run:
            due = look(store, config, Rounds(store))
            print(f"retrain: would {'begin a round' if due.is_due else 'do nothing'}: {due.reason}")
            return
        with Leader(store) as leader, SignalGuard() as guard:
            if config.watch:
                watch(config, launch, store, leader, guard)
            else:
                say(once(config, launch, store, leader, guard=guard))


def check(config: RetrainConfig, launch: Launch) -> None:
    """Refuse what cannot work before anything begins. Raises ConfigError and DataError."""
    if not (config.once or config.watch or launch.dry_run):
        raise ConfigError("--once or --watch is required")
    backbone = required(config.backbone, "backbone", "the supervised model that rounds begin from")
    required(config.heldout, "heldout", "a JSONL of prompts on which candidate and champion are compared")
    gates = config.gates
    paths = {name: find_path(name, launch) for name in config.files()}
    # What is not there must not cost a round. `runs/sfd` could be a hub's, were there no folder `runs` here.
    if any((folder / Path(backbone).parts[0]).is_dir() for folder in (Path(), launch.workspace)):
        find_path(backbone, launch)
    check_model_dir(find_model(backbone, launch))
    for name in (config.heldout, config.prompts, config.eval_prompts, gates.safety_prompts):
        if name is not None:
            for _ in read_jsonl(paths[name], Prompt):
                pass
    if gates.safety_rules is not None:
        RuleList.read(paths[gates.safety_rules])
    if gates.safety_classifier is not None:
        ScoringFunction(gates.safety_classifier)


def once(
    config: RetrainConfig,
    launch: Launch,
    store: Store,
    leader: Leader,
    make_stages: MakeStages = Stages,
    guard: SignalGuard | None = None,
) -> Outcome:
    """One look and what follows from it, with its report."""
    workspace = Workspace(launch.workspace)

    def report(found: Round) -> None:
        write_reports(store, workspace, found)

    def check_signal() -> None:
        if guard is not None and guard.received is not None:
            raise Stopped("stopped between two steps; start it again to go on", guard.received)

    last = Rounds(store).last_ended(config.project)
    if last is not None and not (workspace.runs / last.name / REPORT_HTML).exists():
        report(last)  # killed between its end and its report
    machine = Machine(
        config, launch, store, leader, make_stages=make_stages, on_round=report, check=check_signal
    )
    return machine.once()


def say(found: Outcome) -> None:
    """The outcome in a line, and its alerts in one each."""
    for alert in found.alerts:
        print(f"retrain: alert: {alert}", flush=True)
    print(f"retrain: {found.text}", flush=True)


def watch(config: RetrainConfig, launch: Launch, store: Store, leader: Leader, guard: SignalGuard) -> None:
    """Look again and again. Raises Stopped when a signal comes; a round is then taken up by the next start."""
    before: Outcome | None = None
    print(f"retrain: watching project '{config.project}' as {leader.holder}", flush=True)
    while True:
        found = once(config, launch, store, leader, guard=guard)
        if found != before:
            say(found)
        before = found
        until = time.monotonic() + config.trigger.check_every_s
        while guard.received is None and time.monotonic() < until:
            time.sleep(min(TICK_S, max(0.0, until - time.monotonic())))
        if guard.received is not None:
            raise Stopped("stopped between two looks; start it again to go on", guard.received)
