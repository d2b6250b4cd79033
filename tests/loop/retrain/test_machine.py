"""Rounds without training: the order of their steps, their ends, and what a kill at each of them leads to."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from retrain_world import World, ask_people, fake_stages, people_prefer, tiny

import rlhf.loop.retrain.run as retrain_run
from feedback_app.store import audit
from rlhf.core.config import Settings
from rlhf.core.errors import BusyError, DataError, GuardStop, Stopped
from rlhf.core.run import Run
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.registry import CANDIDATE, CHAMPION, PREVIOUS
from rlhf.loop.retrain import machine
from rlhf.loop.retrain import rounds as steps
from rlhf.loop.retrain.config import TriggerSettings
from rlhf.loop.retrain.judging import asked, people_verdict
from rlhf.loop.retrain.leader import Leader
from rlhf.loop.retrain.machine import Machine, Outcome
from rlhf.loop.retrain.rounds import STATES, Round, Rounds
from rlhf.loop.retrain.stages import Stages


class Killed(BaseException):
    """The end of a process, as far as it can be played in one."""


def test_a_round_goes_through_all_steps_and_makes_a_champion(world: World) -> None:
    outcome = world.once()
    assert outcome.kind == "champion"
    found = outcome.round
    assert found is not None
    assert tuple(world.rounds.steps(found.round_id)) == STATES
    assert (found.number, found.state, found.error) == (1, steps.CHAMPION, None)
    names = world.names()
    supervised = names[PREVIOUS]
    assert supervised.startswith("sft-")  # what the first round had to beat
    assert names == {CHAMPION: found.candidate_id, PREVIOUS: supervised}
    verdicts = {verdict.name: verdict for verdict in world.rounds.verdicts(found.round_id)}
    assert list(verdicts) == [
        *("data", "agreement", "raters", "reward accuracy", "calibration", "win rate", "kl", "slices"),
    ]
    assert all(verdict.passed for verdict in verdicts.values())
    assert (verdicts["win rate"].figure, verdicts["win rate"].threshold) == (0.8, 0.5)
    # Nothing new: nothing happens, however often it is asked.
    assert world.once().text == "nothing new since round 1"
    assert len(world.rounds.all()) == 1


def test_a_killed_round_ends_once_wherever_it_was_killed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start ends the same round, with one promotion."""
    advance = Rounds.advance
    # Each round begins with another champion, so that it is other work although no rating is new.
    gates = world.config.gates.model_copy(update={"min_new": 0})
    config = world.config.model_copy(update={"now": True, "gates": gates})
    world.once(config)
    # Before each transaction, which is also after the one before it; and after the last one.
    for state, after in [*((state, False) for state in STATES[1:]), (steps.CHAMPION, True)]:

        def killed(
            self: Rounds, found: Any, to: str, *, at: str = state, late: bool = after, **more: Any
        ) -> Any:
            if to != at:
                return advance(self, found, to, **more)
            if late:
                advance(self, found, to, **more)
            raise Killed

        number = len(world.rounds.all()) + 1
        before = world.names()[CHAMPION]
        monkeypatch.setattr(Rounds, "advance", killed)
        with pytest.raises(Killed):
            world.once(config)
        monkeypatch.setattr(Rounds, "advance", advance)
        assert (world.names()[CHAMPION] == before) != after
        if not after:
            assert world.once(config).kind == "champion"
        found = world.rounds.all()[-1]
        assert found.number == number
        assert found.state == steps.CHAMPION
        assert tuple(world.rounds.steps(found.round_id)) == STATES
        assert world.names() == {CHAMPION: found.candidate_id, PREVIOUS: before}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"win": 0.55}, "win rate: 0.550 [0.450, 0.650] over 24 prompts"),
        ({"kl": 50.0}, "kl: 50.00 nats per completion from the backbone; at most 40 are accepted"),
        ({"accuracy": 0.55}, "reward accuracy: orders 0.550 [0.450, 0.650] of 40 unseen comparisons"),
    ],
)
def test_a_gate_that_says_no_ends_the_round_with_its_reason(
    world: World, changes: dict[str, float], reason: str
) -> None:
    world.script.__dict__.update(changes)
    outcome = world.once()
    assert outcome.kind == "rejected"
    assert outcome.round is not None
    assert (outcome.round.error or "").startswith(reason)
    assert list(world.names()) == [CHAMPION]  # the supervised model, as before
    assert world.names()[CHAMPION].startswith("sft-")
    # The reward model is judged before a policy is trained against it.
    assert ("ppo" in world.script.calls) == ("accuracy" not in changes)


def test_a_guards_stop_ends_the_round_and_is_not_tried_again(world: World) -> None:
    world.script.raises["ppo"] = [GuardStop("iteration 3: score is nan; the run stopped")]
    outcome = world.once()
    assert outcome.text == "round 1 was rejected: ppo: iteration 3: score is nan; the run stopped"
    assert world.once().kind == "nothing"
    assert world.script.calls.count("ppo") == 1


def test_a_signal_leaves_the_round_open_and_the_next_start_ends_it(world: World) -> None:
    world.script.raises["ppo"] = [Stopped("stopped by SIGTERM; continue with --resume", 15)]
    with pytest.raises(Stopped):
        world.once()
    (found,) = world.rounds.all()
    assert (found.is_open, found.following) == (True, steps.PPO)
    assert world.once().kind == "champion"
    assert world.script.calls.count("reward") == 1  # what was done is not done again


def test_a_step_that_never_ends_is_given_up(world: World) -> None:
    """Memory that runs out every time raises every time, and the round ends before it is begun a fourth time."""
    config = world.config.model_copy(update={"max_attempts": 3})
    world.script.raises["ppo"] = [MemoryError() for _ in range(9)]
    for _ in range(3):
        with pytest.raises(MemoryError):
            world.once(config)
    outcome = world.once(config)
    assert outcome.text == "round 1 was rejected: ppo: begun 3 times without an end (max_attempts)"
    assert world.once(config).kind == "nothing"


def test_a_candidate_that_is_given_up_loses_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an endpoint would go on to try it on users."""

    def killed(*_: Any) -> None:
        raise Killed

    config = world.config.model_copy(update={"max_attempts": 1})
    with monkeypatch.context() as patched:
        patched.setattr(machine, "try_candidate", killed)
        with pytest.raises(Killed):
            world.once(config)
    assert CANDIDATE in world.names()
    assert (
        world.once(config).text == "round 1 was rejected: canary: begun 1 times without an end (max_attempts)"
    )
    assert CANDIDATE not in world.names()


def test_a_round_that_failed_before_its_snapshot_is_not_begun_again_and_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Stages) -> Any:
        raise DataError("the disk holds something else there")

    with monkeypatch.context() as patched:
        patched.setattr(Stages, "export", broken)
        assert world.once().text == "round 1 was rejected: snapshot: the disk holds something else there"
    again = world.once()
    assert again.text.startswith("the same ratings as round 1, which failed: snapshot: the disk")
    world.rate(5)
    assert world.once().kind == "champion"


def test_too_little_data_is_rejected_even_when_asked_for(world: World) -> None:
    world.once()
    world.rate(5)
    assert world.once().text == "10 new comparisons since round 1; 40 are wanted (trigger.min_new)"
    outcome = world.once(world.config.model_copy(update={"now": True}))
    assert outcome.round is not None
    assert outcome.round.error == "data: too little data: 10 new comparisons; at least 20 are needed"


def test_one_who_contradicts_the_others_is_named(world: World) -> None:
    world.once()

    def verdict(name: str, view: Any) -> str:
        said = tiny.likes(view)
        return {"first": "second", "second": "first"}.get(said, said) if name == "cy" else said

    world.rate(40, verdict=verdict)
    outcome = world.once(world.config.model_copy(update={"now": True}))
    assert outcome.round is not None
    reason = outcome.round.error or ""
    assert "raters: contradicts the others: cy agrees with the others on 0.00" in reason
    assert "ann agrees" not in reason


def test_the_same_work_is_not_done_twice(world: World) -> None:
    """Asked for with nothing new and the same champion: the key of the round is known."""
    world.script.win = 0.5
    world.once()
    again = world.once(world.config.model_copy(update={"now": True}))
    assert again.round is not None
    assert again.round.error is not None
    assert again.round.error.startswith("the same ratings, backbone, champion, code and settings as round 1")
    assert world.script.calls.count("reward") == 1


def test_a_file_that_was_mended_is_other_work(world: World) -> None:
    """Otherwise the round that it spoiled could never be made again."""
    world.script.win = 0.5
    world.once()
    with (world.workspace.root / "heldout.jsonl").open("a") as file:
        file.write('{"prompt": "t5 t9"}\n')
    again = world.once(
        world.config.model_copy(
            update={"now": True, "gates": world.config.gates.model_copy(update={"min_new": 0})}
        )
    )
    assert again.round is not None
    assert (again.round.error or "").startswith("win rate")


def test_a_snapshot_of_another_database_is_not_learned_from(world: World) -> None:
    world.once()
    snapshots = world.workspace.snapshots
    shutil.copytree(snapshots / "round-0001", snapshots / "round-0002")
    manifest = snapshots / "round-0002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"snapshot_id": "s-other"}))
    world.rate(30)
    outcome = world.once()
    assert outcome.kind == "rejected"
    assert "round-0002: holds a snapshot that this store does not know" in outcome.text


def test_settings_of_another_version_end_the_round(world: World) -> None:
    with Leader(world.store) as leader:
        Rounds(world.store, leader).begin(tiny.PROJECT, {"gone": 1}, None, {})
    assert "round 1 was begun by another version, and its settings cannot be read" in world.once().text
    assert not world.rounds.all()[0].is_open


def test_a_prompt_that_left_the_heldout_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "t5", "prompt_id": "h1"}\n')
    with pytest.raises(DataError, match="prompt h0, which this round was compared on, is not there any more"):
        asked(tmp_path / "heldout.jsonl", [{"prompt_id": "h1"}, {"prompt_id": "h0"}])


def test_a_report_that_a_kill_prevented_is_written_by_the_next_start(world: World) -> None:
    world.once()
    report = world.workspace.runs / "round-0001" / "report.html"
    assert not report.exists()  # the machine alone writes none
    with Leader(world.store) as leader:
        retrain_run.once(world.config, world.launch, world.store, leader)
    assert report.exists()


def test_a_champion_that_moved_meanwhile_is_not_replaced(world: World) -> None:
    """The candidate was compared with another one."""
    world.once()
    world.rate(20)
    world.script.raises["evaluate"] = [Stopped("stopped by SIGTERM", 15)]
    with pytest.raises(Stopped):
        world.once()
    back = world.registry.rollback(actor="ann", reason="by hand")
    outcome = world.once()
    assert outcome.kind == "rejected"
    assert "the candidate was compared with" in outcome.text
    assert world.names()[CHAMPION] == back.artifact_id
    assert CANDIDATE not in world.names()


# ---- one leader ---------------------------------------------------------------------------------------------


def test_the_second_retrainer_says_who_holds_the_lead(world: World) -> None:
    with Leader(world.store) as leader:
        with pytest.raises(
            BusyError, match=r"process \d+ has been retraining since .*; it goes on"
        ) as caught:
            world.once()
        assert caught.value.exit_code == 2
        assert leader.holder in str(caught.value)
    assert world.once().kind == "champion"


def test_a_leader_that_was_replaced_cannot_write(world: World) -> None:
    """Its lock is gone without its knowing: the token in the database has moved on."""
    with Leader(world.store) as old:
        rounds = Rounds(world.store, old)
        found = rounds.begin("tiny", world.config.model_dump(mode="json"), None, {})
        old._file.release()  # type: ignore[union-attr]
        with Leader(world.store) as new:
            assert new.token == old.token + 1
            with pytest.raises(BusyError, match="has taken over"):
                rounds.advance(found, steps.SNAPSHOT)
            with pytest.raises(BusyError, match="has taken over"):
                rounds.reject(found, "late")
            assert Rounds(world.store, new).advance(found, steps.SNAPSHOT).state == steps.SNAPSHOT


# ---- people -------------------------------------------------------------------------------------------------


def test_people_undo_a_provisional_champion_that_they_do_not_prefer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = world.config.gates.model_copy(update={"people": 12})
    config = world.config.model_copy(update={"gates": gates})
    monkeypatch.setattr(Stages, "ask_people", lambda self, *_: ask_people(world, 12))
    found = world.once(config).round
    assert found is not None
    win = win_rate_of(world, found)
    assert (found.state, win.provisional, win.passed) == (steps.CHAMPION, True, True)
    before = world.names()

    # Nobody has spoken: nothing changes. Then all twelve pairs go to the champion before it.
    world.once(config)
    assert world.names() == before
    people_prefer(world, "champion")
    world.once(config)
    win = win_rate_of(world, found)
    assert (win.provisional, win.passed, win.figure) == (False, False, 0.0)
    assert world.names() == {CHAMPION: before[PREVIOUS], PREVIOUS: before[CHAMPION]}
    assert "people prefer the champion" in world.rounds.get(found.round_id).details["undone"]


def test_waiting_for_people_leaves_the_round_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = world.config.gates.model_copy(update={"people": 12, "wait_for_people": True})
    config = world.config.model_copy(update={"gates": gates, "max_attempts": 2})
    monkeypatch.setattr(Stages, "ask_people", lambda self, *_: ask_people(world, 12))
    for _ in range(3):  # looking again and again is no attempt that failed
        assert world.once(config).kind == "waiting"
    assert world.once(config).text == "round 1 waits: for people: no pair has its answers yet (0 of 12)"
    people_prefer(world, "candidate")
    found = world.once(config).round
    assert found is not None
    win = win_rate_of(world, found)
    assert found.state == steps.CHAMPION
    assert (win.provisional, win.passed, win.figure, win.details) == (False, True, 1.0, {"by": "people"})


@pytest.fixture
def provisional(world: World, monkeypatch: pytest.MonkeyPatch) -> Round:
    """A round whose champion the judge has promoted, and of which people say afterwards that it is worse."""
    gates = world.config.gates.model_copy(update={"people": 12})
    world.config = world.config.model_copy(update={"gates": gates})
    monkeypatch.setattr(Stages, "ask_people", lambda self, *_: ask_people(world, 12))
    found = world.once().round
    assert found is not None
    assert found.candidate_id == world.names()[CHAMPION]
    people_prefer(world, "champion")
    return found


def test_a_kill_while_a_promotion_is_undone_leaves_it_to_be_undone(
    world: World, provisional: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(audit, "append", killed)  # the first name has moved
        with pytest.raises(Killed):
            world.once()
    assert world.names()[CHAMPION] == provisional.candidate_id
    assert win_rate_of(world, provisional).provisional
    world.once()
    assert world.names() == {CHAMPION: provisional.champion_id, PREVIOUS: provisional.candidate_id}


def test_an_undone_promotion_goes_back_to_what_it_was_compared_with(world: World, provisional: Round) -> None:
    """Not to `previous`, which somebody has moved meanwhile."""
    assert provisional.candidate_id is not None
    other = finished_run(world, "other")
    for artifact_id in (other, provisional.candidate_id):
        world.registry.promote(artifact_id, actor="ann", reason="a try")
    assert world.names()[PREVIOUS] == other
    world.once()
    assert world.names() == {CHAMPION: provisional.champion_id, PREVIOUS: provisional.candidate_id}


def test_what_cannot_be_gone_back_to_is_said_and_stays_to_be_done(world: World, provisional: Round) -> None:
    (world.workspace.root / "runs" / "sft" / "FINISHED").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="is not there any more; name another with `rlhf promote`"):
            world.once()
    assert win_rate_of(world, provisional).provisional


def test_a_promotion_whose_pairs_are_gone_stays_provisional(
    world: World, provisional: Round, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.workspace.runs / "round-0001" / "people" / "people.json").unlink()
    assert world.once().kind == "nothing"
    assert (
        "retrain: alert: what people say about the champion of round 1 cannot be read"
        in capsys.readouterr().out
    )
    assert win_rate_of(world, provisional).provisional


def test_a_pair_counts_once_all_of_its_answers_are_in(world: World) -> None:
    """A mean that changes with the second answer would be two bets on one pair."""
    ask_people(world, 12, overlap=2)
    folder = world.workspace.runs / "round-0001" / "people"
    gates = world.config.gates.model_copy(update={"people_overlap": 2})
    config = world.config.model_copy(update={"gates": gates})
    people_prefer(world, "candidate")
    assert people_verdict(folder, config, world.launch).figure is None
    people_prefer(world, "candidate", name="second judge")
    assert people_verdict(folder, config, world.launch).figure == 1.0


def finished_run(world: World, name: str) -> str:
    out = world.workspace.runs / name
    with Run.start(out, stage="ppo", settings=Settings(), launch=world.launch, parents={}, seed=0) as run:
        (run.path / "weights").write_text(name)
        run.finish({})
    return world.registry.register(out).artifact_id


def win_rate_of(world: World, found: Round) -> Verdict:
    (win,) = [verdict for verdict in world.rounds.verdicts(found.round_id) if verdict.name == "win rate"]
    return win


# ---- before anything begins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "runs/sfd"}, "runs/sfd: no such file or directory"),
        ({"heldout": "bad.jsonl"}, "bad.jsonl:1"),
        ({"gates": {"safety_rules": "bad.jsonl"}}, "bad.jsonl"),
        ({"gates": {"safety_classifier": "gone.py:unsafe"}}, "no such file gone.py"),
        ({"ppo": {"rewards": [{"source": "runs/x"}]}}, "ppo.rewards is filled in by every round"),
    ],
)
def test_what_would_cost_a_round_is_refused_before_it(
    world: World, changes: dict[str, Any], reason: str
) -> None:
    (world.workspace.root / "bad.jsonl").write_text('{"no prompt": 1}\n')
    retrain_run.check(world.config, world.launch)
    with pytest.raises(ValueError, match=reason):
        retrain_run.check(tiny.config_of(**changes), world.launch)


# ---- watching -----------------------------------------------------------------------------------------------


def test_watching_says_what_is_new_once_and_ends_with_the_signal(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four looks: nothing twice, then something else, then a signal; nothing is said twice in a row."""
    looks = [Outcome("nothing", "nothing new yet")] * 2 + [Outcome("nothing", "3 new", alerts=("drift: so",))]

    def once(*_: Any, **__: Any) -> Outcome:
        if len(looks) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return looks.pop(0)

    monkeypatch.setattr(retrain_run, "once", once)
    config = world.config.model_copy(
        update={"once": False, "watch": True, "trigger": TriggerSettings(check_every_s=0.01)}
    )
    with pytest.raises(Stopped) as caught:
        retrain_run.run(config, world.launch)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["retrain: nothing new yet", "retrain: alert: drift: so", "retrain: 3 new"]


def test_a_signal_between_two_steps_ends_the_command_and_keeps_the_round(world: World) -> None:
    """The machine asks before each step; what was done stays done."""
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise Stopped("stopped between two steps", 15)

    make = fake_stages(world.script)
    with Leader(world.store) as leader:
        stopping = Machine(world.config, world.launch, world.store, leader, make_stages=make, check=check)
        with pytest.raises(Stopped):
            stopping.once()
    (found,) = world.rounds.all()
    assert (found.is_open, found.state) == (True, steps.REWARD_GATES)
    assert world.once().kind == "champion"
