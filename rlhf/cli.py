"""`rlhf <command>`: finds the command's settings and runner, and turns every error into one line.

Nothing heavy is imported here: a stage, and with it torch, is loaded only when its command runs, so that
`rlhf --help` answers at once. Exit codes: 0 done, 1 a fault of ours, 2 bad usage, config or data, 3 stopped
by a guard, 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rlhf.core.errors import EXIT_USAGE, ConfigError, RlhfError

if TYPE_CHECKING:
    from rlhf.core.run import Launch

EXIT_FAULT = 1
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
DEFAULT_WORKSPACE = "rlhf-workspace"

# Options of the command line itself; everything else on it belongs to the settings of the command.
_LAUNCH_OPTIONS: dict[str, tuple[str, str]] = {
    "workspace": ("DIR", f"folder of runs, snapshots and ratings (default: ./{DEFAULT_WORKSPACE})"),
    "db": ("URL", "feedback store (default: sqlite file feedback.db in the workspace)"),
    "config": ("FILE.yaml", "settings from a file; options override it"),
    "out": ("DIR", "where the result goes"),
    "resume": ("", "continue the unfinished run in --out"),
    "force": ("", "start over; what is there is renamed to DIR.old-1, -2, ..."),
    "print_config": ("", "print the resolved settings as YAML and end"),
    "dry_run": ("", "check the inputs, say what would be done, and end before training"),
    "json": ("", "print the result as JSON"),
}
_EVERYWHERE = ("workspace", "db")
_TRAINING = ("config", "out", "resume", "force", "print_config", "dry_run")


@dataclass(frozen=True)
class Command:
    """settings and runner are 'module:name'; `launch` names the launch options beyond the common ones."""

    settings: str
    runner: str
    help: str
    training: bool = False
    launch: tuple[str, ...] = ()

    @property
    def launch_options(self) -> tuple[str, ...]:
        return _EVERYWHERE + (_TRAINING if self.training else self.launch)


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "rlhf.demo.config:DemoConfig",
        "rlhf.demo.run:run",
        "the whole loop in an embedded world, with a report at the end",
    ),
    "doctor": Command(
        "rlhf.doctor.config:DoctorConfig",
        "rlhf.doctor.run:run",
        "versions, devices, memory, disk and store: what is missing, and how to get it",
        launch=("json",),
    ),
    "plan": Command(
        "rlhf.plan.config:PlanConfig",
        "rlhf.plan.run:run",
        "what a stage will need of memory, and the micro-batch that fits",
        launch=("config", "json"),
    ),
    "prepare": Command(
        "sft.prepare.config:PrepareConfig",
        "sft.prepare.run:run",
        "clean, mask, deduplicate, split and mix data for sft, with a report",
        launch=("config", "out", "force", "print_config", "dry_run"),
    ),
    "sft": Command(
        "sft.config:SFTConfig",
        "sft.train:run",
        "supervised tuning on demonstrations; the result is the backbone of the round",
        training=True,
    ),
    "sft-eval": Command(
        "sft.assess.config:SFTEvalConfig",
        "sft.assess.run:run",
        "what supervised tuning gained over the base and over few-shot prompting, and what it lost",
        launch=("config", "out", "force", "print_config"),
    ),
    "classify": Command(
        "sft.classify.config:ClassifyConfig",
        "sft.classify.train:run",
        "train a classifier on labelled texts, with a report on texts it has not seen",
        training=True,
    ),
    "label": Command(
        "sft.classify.config:LabelConfig",
        "sft.classify.predict:run",
        "label the texts of a file with a classifier",
        launch=("out", "force"),
    ),
    "canaries": Command(
        "sft.privacy.config:CanariesConfig",
        "sft.privacy.plant:run",
        "put invented secrets among demonstrations, to see later what a model gives away",
        launch=("out",),
    ),
    "memorisation": Command(
        "sft.privacy.config:MemorisationConfig",
        "sft.privacy.memorisation:run",
        "how far a model gives away the canaries that it was trained on",
        launch=("out", "force"),
    ),
    "sample": Command(
        "rlhf.loop.config:SampleConfig",
        "rlhf.loop.sample:run",
        "write completions of a model into the feedback store as rating tasks",
    ),
    "app": Command(
        "feedback_app.config:AppConfig", "feedback_app.app:run", "serve the rating pages to annotators"
    ),
    "users": Command(
        "feedback_app.config:UsersConfig", "feedback_app.auth:run", "add, list and change the people who rate"
    ),
    "import": Command(
        "feedback_app.config:ImportConfig",
        "feedback_app.importing:run",
        "read prompts, completions or ratings from a file",
    ),
    "export": Command(
        "feedback_app.config:ExportConfig",
        "feedback_app.exporting:run",
        "write the ratings as a snapshot split by prompt",
        launch=("out",),
    ),
    "backup": Command(
        "feedback_app.config:BackupConfig",
        "feedback_app.operations:run_backup",
        "copy the feedback store while it is in use",
        launch=("out",),
    ),
    "restore": Command(
        "feedback_app.config:RestoreConfig",
        "feedback_app.operations:run_restore",
        "bring a backup of the feedback store back",
        launch=("force",),
    ),
    "reward": Command(
        "reward.config:RewardConfig",
        "reward.train:run",
        "train a reward model on a snapshot of preferences",
        training=True,
    ),
    "reward-eval": Command(
        "reward.assess.config:RewardEvalConfig",
        "reward.assess.run:run",
        "what a reward model got right, what it falls for, and whom it treats differently",
        launch=("out", "force"),
    ),
    "reward-history": Command(
        "rlhf.loop.config:RewardHistoryConfig",
        "rlhf.loop.reward_history:run",
        "how each batch of ratings moved the accuracy of the reward model",
        launch=("config", "out", "resume", "force"),
    ),
    "adjudicate": Command(
        "rlhf.loop.config:AdjudicateConfig",
        "rlhf.loop.adjudicate:run",
        "send ratings that the reward model contradicts to a lead, undecided pairs to the raters",
        launch=("config", "out", "resume", "force", "dry_run"),
    ),
    "score": Command(
        "reward.config:ScoreConfig",
        "reward.score_file:run",
        "score completions of a file with a reward model",
        launch=("out", "force"),
    ),
    "ppo": Command(
        "rlhf.loop.ppo_with_people.config:PPOWithPeopleConfig",
        "rlhf.loop.ppo_with_people.run:run",
        "improve the policy against the reward model",
        training=True,
    ),
    "prefer": Command(
        "rlhf.preference.config:PreferConfig",
        "rlhf.preference.train:run",
        "tune the policy without a critic: dpo, ipo, robust, kto, orpo, cpo, simpo, grpo, rloo, online-dpo, raft",
        training=True,
    ),
    "best-of-n": Command(
        "rlhf.preference.config:BestOfNConfig",
        "rlhf.preference.best_of_n:run",
        "draw n completions of each prompt and keep the best by a reward, for decoding or imitation",
        launch=("config", "out", "force", "resume"),
    ),
    "compare": Command(
        "rlhf.loop.compare.config:CompareConfig",
        "rlhf.demo.compare:run",
        "tune by several methods on the same data at an equal price; without a backbone in the embedded world",
        launch=("config", "out", "resume", "force", "print_config", "dry_run"),
    ),
    "evaluate": Command(
        "rlhf.loop.config:EvaluateConfig",
        "rlhf.loop.evaluate:run",
        "win rate of a candidate over a baseline on held-out prompts",
        launch=("config", "out", "resume", "force"),
    ),
    "retrain": Command(
        "rlhf.loop.retrain.config:RetrainConfig",
        "rlhf.loop.retrain.run:run",
        "turn new ratings into a better champion, or say why not; once or again and again",
        launch=("config", "print_config", "dry_run"),
    ),
    "status": Command(
        "rlhf.loop.registry_config:StatusConfig",
        "rlhf.loop.status:status",
        "champion, rounds and their reasons, and what depends on erased ratings",
    ),
    "promote": Command(
        "rlhf.loop.registry_config:PromoteConfig",
        "rlhf.loop.status:promote",
        "make an artifact the champion by hand",
    ),
    "rollback": Command(
        "rlhf.loop.registry_config:RollbackConfig",
        "rlhf.loop.status:rollback",
        "make the previous champion the champion again",
    ),
    "lineage": Command(
        "rlhf.loop.registry_config:LineageConfig",
        "rlhf.loop.lineage:run",
        "from a checkpoint to the ratings it rests on, and from a rating to what learned from it",
        launch=("out",),
    ),
    "serve": Command(
        "rlhf.serve.config:ServeConfig",
        "rlhf.serve.server:run",
        "an OpenAI-compatible endpoint for the champion, or for one model",
        launch=("config", "print_config"),
    ),
    "chat": Command(
        "rlhf.serve.config:ChatConfig",
        "rlhf.serve.chat.app:run",
        "a chat page against an endpoint; thumbs, choices and corrections become ratings",
        launch=("config", "print_config"),
    ),
    "merge": Command(
        "rlhf.after.config:MergeConfig",
        "rlhf.after.merge:run",
        "fold one adapter, or a blend of several, into the base",
        launch=("config", "out", "resume", "force"),
    ),
    "distill": Command(
        "rlhf.after.config:DistillConfig",
        "rlhf.after.distill:run",
        "train a smaller model to answer like a larger one",
        training=True,
    ),
    "publish": Command(
        "rlhf.after.config:PublishConfig",
        "rlhf.after.publish:run",
        "a finished run as safetensors with a model card; pushed to the hub only when asked",
        launch=("config", "out", "resume", "force"),
    ),
}


def console() -> NoReturn:
    """Entry point of the `rlhf` command."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code; messages go to standard error, never a traceback."""
    try:
        _run(argv)
        sys.stdout.flush()
        return 0
    except RlhfError as error:
        _show_traceback()
        return error.exit_code if error.quiet else _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # the reader has gone; without this Python complains again when it flushes standard output at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else EXIT_FAULT
    except Exception as error:
        _show_traceback()
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOSPC,
        ):
            return _fail(f"{error.filename or 'a file'}: {error.strerror}", EXIT_USAGE)
        text = " ".join(str(error).split())
        log = _write_fault(argv)
        print(f"rlhf: internal fault: {type(error).__name__}: {text} (details in {log})", file=sys.stderr)
        return EXIT_FAULT


def _run(argv: list[str]) -> None:
    if not argv:
        print(_overview(), file=sys.stderr)
        raise ConfigError("no command given; see the list above")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return
    if name == "--version":
        importlib.import_module("importlib.metadata")
        print(f"rlhf-loop {importlib.metadata.version('rlhf-loop')}")
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command '{name}'; {hint}")
    # no stage may report to anybody by default
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _run_command(name, COMMANDS[name], rest)


def _run_command(name: str, command: Command, arguments: list[str]) -> None:
    prog = f"rlhf {name}"
    if "-h" in arguments or "--help" in arguments:
        _command_help(prog, command)
        return
    given, rest = _split(prog, command, arguments)
    settings_class = _load(command.settings)
    core_config = importlib.import_module("rlhf.core.config")
    config_file = Path(given["config"]) if given.get("config") else None
    settings = core_config.load_settings(settings_class, config_file, rest, prog)
    if given.get("print_config"):
        sys.stdout.write(core_config.settings_to_yaml(settings))
        return
    _load(command.runner)(settings, _launch(given))


def _split(prog: str, command: Command, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The launch options by name, and the rest, which belongs to the settings."""
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    for option in command.launch_options:
        metavar, _ = _LAUNCH_OPTIONS[option]
        flag = f"--{option.replace('_', '-')}"
        if metavar:
            parser.add_argument(flag, dest=option)
        else:
            parser.add_argument(flag, dest=option, action="store_true")
    found, rest = parser.parse_known_args(arguments)
    return vars(found), rest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def _launch(given: dict[str, Any]) -> Launch:
    core_run = importlib.import_module("rlhf.core.run")
    workspace = Path(os.path.abspath(given.get("workspace") or DEFAULT_WORKSPACE))
    db = given.get("db") or core_run.Workspace(workspace).db_url
    if "://" not in db:
        raise ConfigError(f"--db: expected a URL such as sqlite:///feedback.db; found '{db}'")
    return core_run.Launch(
        workspace=workspace,
        db=db,
        out=Path(given["out"]) if given.get("out") else None,
        resume=bool(given.get("resume")),
        force=bool(given.get("force")),
        dry_run=bool(given.get("dry_run")),
        json=bool(given.get("json")),
    )


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rlhf <command> [options]",
            "",
            "From people's ratings to a better policy.",
            "",
            *lines,
            "",
            "`rlhf <command> --help` shows the settings of a command.",
        ]
    )


def _command_help(prog: str, command: Command) -> None:
    print(f"{prog}: {command.help}\n")
    for option in command.launch_options:
        metavar, text = _LAUNCH_OPTIONS[option]
        flag = f"--{option.replace('_', '-')} {metavar}"
        print(f"  {flag:<22}{text}")
    print()
    settings_class = _load(command.settings)
    importlib.import_module("rlhf.core.config").load_settings(settings_class, None, ["--help"], prog)


def _fail(message: str, code: int) -> int:
    print(f"rlhf: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_traceback() -> None:
    if os.environ.get("RLHF_TRACEBACK") == "1":
        traceback.print_exc()


def _write_fault(argv: list[str]) -> str:
    """The traceback as a file of its own: the terminal gets one line, the report of a bug needs the rest."""
    name = f"rlhf-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path = Path(tempfile.gettempdir()) / name
    try:
        path.write_text(f"rlhf {' '.join(argv)}\n\n{traceback.format_exc()}", encoding="utf-8")
    except OSError:
        return "no file could be written; set RLHF_TRACEBACK=1 to see them"
    return str(path)


if __name__ == "__main__":
    console()
