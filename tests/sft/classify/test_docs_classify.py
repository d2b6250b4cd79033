"""docs/classification.md and docs/privacy.md: the commands in them are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlhf.cli import COMMANDS
from rlhf.core.config import known_keys, load_settings
from sft.classify.config import ClassifyConfig, LabelConfig
from sft.config import SFTConfig
from sft.privacy.config import CanariesConfig, MemorisationConfig

DOCS = Path(__file__).resolve().parents[3] / "docs"
SETTINGS = {
    "classify": ClassifyConfig,
    "label": LabelConfig,
    "sft": SFTConfig,
    "canaries": CanariesConfig,
    "memorisation": MemorisationConfig,
}
PAGES = ("classification.md", "privacy.md")


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        found += [(page, line) for line in re.findall(r"^    (rlhf .*)$", text, re.MULTILINE)]
    return found


def test_there_are_examples_of_every_command() -> None:
    assert {line.split()[1] for _, line in commands()} == set(SETTINGS)


@pytest.mark.parametrize(("page", "line"), commands())
def test_the_commands_are_understood(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line)
    own = {"--out", "--workspace"} & {f"--{option}" for option in COMMANDS[name].launch_options}
    for option in own & set(arguments):
        place = arguments.index(option)
        del arguments[place : place + 2]
    load_settings(SETTINGS[name], None, arguments, f"rlhf {name}")


@pytest.mark.parametrize("page", PAGES)
def test_the_options_in_the_text_exist(page: str) -> None:
    known = {".".join(key) for cls in SETTINGS.values() for key in known_keys(cls)}
    known |= {"resume", "force", "out", "group_column", "label_column"}
    text = (DOCS / page).read_text(encoding="utf-8")
    for option in re.findall(r"--([a-z][a-z.-]+)", text):
        assert option.replace("-", "_") in known, option
    for setting in re.findall(r"`((?:privacy|lora)\.\w+)`", text):
        assert setting in known, setting
