"""rlhf publish: loads anywhere, tells what it is, and takes nobody's name along; pushes only when asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.after import hub
from rlhf.after.card import card, plain_settings
from rlhf.after.config import PublishConfig
from rlhf.cli import main
from rlhf.core.run import Launch, Manifest, is_finished, read_manifest


class FakeApi:
    """Remembers what it was asked for. repositories: name -> private."""

    def __init__(self, repositories: dict[str, bool]) -> None:
        self.repositories, self.pushed = repositories, []

    def __call__(self) -> FakeApi:
        return self

    def repo_exists(self, name: str) -> bool:
        return name in self.repositories

    def repo_info(self, name: str) -> Any:
        return SimpleNamespace(private=self.repositories[name])

    def create_repo(self, name: str, *, private: bool) -> None:
        if name.startswith("nobody/"):
            raise LocalTokenNotFoundError("Token is required")
        self.repositories[name] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        self.pushed.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi({"us/open": False, "us/closed": True})
    monkeypatch.setattr(hub, "HfApi", fake)
    return fake


def publish(launch: Launch, run: Path, *options: str) -> int:
    return main(["publish", "--workspace", str(launch.workspace), "--run", str(run), *options])


def test_a_model_with_its_card(
    launch: Launch, finished: Callable[..., Path], tiny_model: Callable[..., Path], api: FakeApi
) -> None:
    data = launch.workspace / "demonstrations.jsonl"
    data.write_text('{"prompt": "the secret prompt", "completion": "maria"}\n')
    base = finished("base", "sft", model=tiny_model(), parents={"data": data})
    run = finished("better", "sft", model=tiny_model(), parents={"base": base / "model", "data": data})
    config = run / "model" / "config.json"
    place = {"_name_or_path": "/home/maria/model"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **place, "part_config": place}))
    tokenizer = run / "model" / "tokenizer_config.json"
    place = {"special_tokens_map_file": "/home/maria/special.json"}
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), **place}))
    (run / "model" / "notes.md").write_text("maria's notes")
    assert publish(launch, run, "--license", "apache-2.0", "--limits", "Not for doctors.") == 0
    out = launch.workspace / "runs" / "better-published"
    package = out / "package"
    assert is_finished(out)
    assert not api.pushed
    readme = (package / "README.md").read_text()
    front = yaml.safe_load(readme.split("---")[1])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf-loop", "sft"],
        "license": "apache-2.0",
    }
    for text in (
        *("# better", "Not for doctors.", "Not stated by who published it.", "| lr | 0.001 |", "train 12"),
        *(
            "| validation_loss | 1.25 |",
            "- base: `base/model`",
            "made by the stage sft",
            "  - data: `demonstrations",
        ),
    ):
        assert text in readme, text
    # Names, prompts and places stay at home, in every file.
    for file in package.iterdir():
        if file.suffix != ".safetensors":
            for secret in ("maria", "secret prompt", str(launch.workspace)):
                assert secret not in file.read_text().lower(), (file.name, secret)
    assert not (package / "notes.md").exists()
    AutoModelForCausalLM.from_pretrained(package)
    AutoTokenizer.from_pretrained(package)
    provenance = json.loads((package / "provenance.json").read_text())
    assert provenance["metrics"] == {"validation_loss": 1.25, "num_train": 12}
    assert [one["depth"] for one in provenance["lineage"]] == [1, 2, 1]


def test_it_is_pushed_only_when_asked_and_private(
    launch: Launch, finished: Callable[..., Path], tiny_model: Callable[..., Path], api: FakeApi
) -> None:
    run = finished("mine", "sft", model=tiny_model())
    assert publish(launch, run, "--push-to", "us/new") == 0
    assert api.repositories["us/new"] is True
    ((name, files),) = api.pushed
    assert name == "us/new"
    assert "README.md" in files
    assert "manifest.json" not in files
    manifest = read_manifest(launch.workspace / "runs" / "mine-published")
    assert manifest.extra["pushed"] == "https://hub/us/new/commit/1"
    # Again with the same settings: done already.
    assert publish(launch, run, "--push-to", "us/new") == 0
    assert len(api.pushed) == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("us/open", "is public; push there with --public"),
        ("nobody/x", "log in with `hf auth login`"),
        ("no-owner", "expected owner/name; found 'no-owner'"),
    ],
)
def test_a_push_that_cannot_be_is_one_line_and_can_be_resumed(
    launch: Launch,
    finished: Callable[..., Path],
    tiny_model: Callable[..., Path],
    api: FakeApi,
    capsys: pytest.CaptureFixture[str],
    target: str,
    said: str,
) -> None:
    run = finished("mine", "sft", model=tiny_model())
    assert publish(launch, run, "--push-to", target) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not api.pushed
    if target == "us/open":
        out = launch.workspace / "runs" / "mine-published"
        assert not is_finished(out)
        api.repositories["us/open"] = True
        assert publish(launch, run, "--push-to", target, "--resume") == 0
        assert is_finished(out)


def test_what_cannot_be_published(
    launch: Launch,
    finished: Callable[..., Path],
    tiny_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    unfinished = finished("half", "sft", model=tiny_model(), finish=False)
    assert publish(launch, unfinished) == 2
    assert "is an unfinished sft run" in capsys.readouterr().err
    empty = finished("empty", "reward")
    assert publish(launch, empty) == 2
    assert "has no result to publish" in capsys.readouterr().err
    pickled = finished("pickled", "sft", model=tiny_model())
    (pickled / "model" / "pytorch_model.bin").write_bytes(b"\x80")
    assert publish(launch, pickled) == 2
    assert "expected safetensors" in capsys.readouterr().err
    adapter = finished("policy", "ppo")
    (adapter / "adapter").mkdir()
    (adapter / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    config = {"peft_type": "LORA", "base_model_name_or_path": "runs/pickled/model"}
    (adapter / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert publish(launch, adapter) == 2
    assert "its base is runs/pickled/model of this machine" in capsys.readouterr().err
    gone = config | {"base_model_name_or_path": "../home/maria/model"}  # it was outside, and is there no more
    (adapter / "adapter" / "adapter_config.json").write_text(json.dumps(gone))
    assert publish(launch, adapter) == 2
    assert "nobody else has" in capsys.readouterr().err
    assert publish(launch, adapter, "--base-name", "us/base") == 0
    package = launch.workspace / "runs" / "policy-published" / "package"
    found = json.loads((package / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "us/base"
    assert "base_model: us/base" in (package / "README.md").read_text()


def test_what_a_card_says_of_paths_people_and_classifiers() -> None:
    settings = {
        "data": "data/letters.jsonl",
        "base": "../maria/llama",
        "test": "/home/maria/t.csv",
        "who": "maria@example.org",
    }
    assert plain_settings(settings) == {"data": "data/letters.jsonl", "base": "llama", "test": "t.csv"}
    manifest = Manifest(stage="classify", created="now")
    text = card(manifest, PublishConfig(), [], title="t", kind="adapter", base="us/base")
    assert "pipeline_tag: text-classification" in text
    assert "AutoPeftModelForSequenceClassification.from_pretrained" in text
    assert "A classifier of texts" in text
