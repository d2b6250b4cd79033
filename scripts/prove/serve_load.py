"""Proof: `rlhf serve` under load. The `openai` client's calls, alias moves that drop nothing, and how fast it is.

    python scripts/prove/serve_load.py [--seconds 60] [--clients 8] [--out FILE.json]

Starts `rlhf serve` as people do, in a process of its own, over a workspace with a registry and two adapters on a small
random model. Then:

  calls       the openai client gets a chat answer and a streamed one, equal at temperature 0
  moves       for --seconds, --clients clients ask (half of them streaming) while the champion moves every 2 s between
              the two adapters: every request is answered, each answer is wholly that of the model it names (on
              prompts whose greedy answer no rounding decides)
  throughput  the same requests one after the other by the sampler, and all at once by the endpoint
  stop        SIGTERM with requests in flight: all are answered, exit code 143

Exits with 1 when a request is dropped or mixed up, or the stop loses one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from feedback_app.store.engine import Store
from rlhf.core.adapters import load_adapter, save_policy
from rlhf.core.backbone import Backbone
from rlhf.core.config import Settings
from rlhf.core.files import write_json
from rlhf.core.records import Message
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import LoraSettings, ModelSettings, SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.loop.registry import CHAMPION, Registry

PROMPTS = (
    "my order has not come yet",
    "hello",
    "the ticket says it is paid but the page does not agree and nobody answers",
    "can I change the date",
    "thank you",
    "red and green and blue birds in the rain",
    "where is it",
    "please send the parcel back within fourteen days",
)
# A greedy choice that is decided by less than this (in logits) is rounding's, which differs from batch to batch.
MIN_GAP = 1e-3
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_TOKENS = 48
MOVE_EVERY_S = 2.0


def main() -> int:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="serve-load-"))
    try:
        figures = prove(folder, arguments.seconds, arguments.clients)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        write_json(Path(arguments.out), figures)
    short = [name for name in ("dropped", "mixed", "lost_at_stop") if figures[name]]
    if not figures["client_calls_agree"] or figures["exit_code"] not in (143, -15):
        short.append("client calls or exit code")
    print(f"serve_load: {'FELL SHORT: ' + ', '.join(short) if short else 'held'}")
    return 1 if short else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long names move under load")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", help="write the figures there too")
    return parser.parse_args()


def prove(folder: Path, seconds: float, clients: int) -> dict[str, Any]:
    launch, artifacts = make_world(folder)
    by_sampler = Sampler(launch)
    server = Served(launch)
    figures: dict[str, Any] = {
        "seconds": seconds,
        "clients": clients,
        "smallest_leads": {prompt: round(gap, 6) for prompt, gap in by_sampler.gaps.items()},
        "prompts": len(by_sampler.prompts),
    }
    try:
        figures |= client_calls(server, by_sampler)
        figures |= moves(server, launch, artifacts, by_sampler, seconds, clients)
        figures |= throughput(server, by_sampler, clients)
        figures |= stop(server)
    finally:
        server.end()
    return figures


# ---- the world -------------------------------------------------------------------------------------------


class NoSettings(Settings):
    """A run of this proof needs none."""


def make_world(root: Path) -> tuple[Launch, dict[str, str]]:
    """A workspace whose registry knows two policies; returns their artifact ids by run."""
    launch = Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")
    save_small_model(root / "models" / "base")
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    ids = {}
    with Store.open(launch.db) as store:
        registry = Registry(store, Workspace(root))
        for number, name in enumerate(("one", "two")):
            role = backbone.add_role(name, LoraSettings(r=8), seed=number)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in role.parameters():
                    parameter.normal_(std=0.08, generator=generator)
            out = root / "runs" / name
            with Run.start(
                out, stage="ppo", settings=NoSettings(), launch=launch, parents={}, seed=number
            ) as run:
                save_policy(role, out / "adapter", backbone)
                run.finish({})
            ids[name] = registry.register(out).artifact_id
        registry.promote(ids["one"], actor="proof", reason="the first one")
    return launch, ids


def save_small_model(folder: Path) -> None:
    """A random Llama of 13 M parameters with a byte-level tokenizer and a chat template."""
    tokenizer = small_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in name or "head" in name else 0.06)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer() -> Any:
    """A byte-level tokenizer of about 2,000 pieces, with a chat template."""
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    return fast


class Sampler:
    """What the sampler writes at temperature 0, one request at a time."""

    def __init__(self, launch: Launch) -> None:
        root = launch.workspace
        self.backbone = Backbone.load(
            root / "models" / "base", ModelSettings(device="cpu"), name="models/base"
        )
        for name in ("one", "two"):
            folder = root / "runs" / name / "adapter"
            load_adapter(self.backbone, name, folder, base_name="models/base", scalar_head=False)
        self.settings = SamplingSettings(temperature=0, max_completion_tokens=MAX_TOKENS)
        self.wanted: dict[tuple[str, str], str] = {}
        self.gaps: dict[str, float] = {}
        for prompt in PROMPTS:
            for name in ("one", "two"):
                self.wanted[name, prompt], _, gap = self.write(name, prompt)
                self.gaps[prompt] = min(gap, self.gaps.get(prompt, gap))
        self.prompts = [prompt for prompt in PROMPTS if self.gaps[prompt] >= MIN_GAP]
        if len(self.prompts) < 3:
            raise SystemExit(f"serve_load: rounding decides too many of the answers: {self.gaps}")

    def write(self, name: str, prompt: str) -> tuple[str, int, float]:
        """(text, number of tokens, smallest lead of a chosen token over the next best, in logits)."""
        ids, tokens = self.draw(name, prompt)
        whole = torch.tensor([[*ids, *tokens]])
        with torch.no_grad():
            logits_SV = self.backbone.logits(self.backbone.hidden(name, whole))[0, len(ids) - 1 : -1]
        best_S2 = logits_SV.topk(2, dim=-1).values
        text = StopRule(self.backbone.codec, self.settings).text(tokens)
        return text, len(tokens), float((best_S2[:, 0] - best_S2[:, 1]).min())

    def draw(self, name: str, prompt: str) -> tuple[list[int], list[int]]:
        """(tokens of the prompt, tokens of its answer)."""
        ids = self.backbone.codec.prompt_ids([Message(role="user", content=prompt)])
        [found] = sample(
            self.backbone.sampling_model(name),
            [Request(ids, 0)],
            self.settings,
            end_token_ids=self.backbone.codec.end_token_ids,
            seed=0,
        )
        return ids, found.tokens


class Served:
    """`rlhf serve` in a process of its own."""

    def __init__(self, launch: Launch) -> None:
        self.port = _free_port()
        command = [sys.executable, "-m", "rlhf.cli", "serve", "--workspace", str(launch.workspace)]
        command += ["--port", str(self.port), "--poll-s", "0.2", "--model.device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serve: ready"):
                break
        else:
            raise SystemExit("serve_load: the server ended before it was ready")
        # what it prints from here on is read, or its pipe would fill
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- what is proved --------------------------------------------------------------------------------------


def ask(client: openai.OpenAI, prompt: str, *, stream: bool) -> tuple[str, str, float, float]:
    """(text, fingerprint, seconds, seconds to the first part) of a greedy answer."""
    options: dict[str, Any] = {
        "model": "champion",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    begun = time.perf_counter()
    if not stream:
        reply = client.chat.completions.create(**options)
        took = time.perf_counter() - begun
        return reply.choices[0].message.content or "", reply.system_fingerprint or "", took, took
    text, prints, first, finish = "", set(), 0.0, None
    for part in client.chat.completions.create(stream=True, **options):
        prints.add(part.system_fingerprint)
        text += part.choices[0].delta.content or ""
        finish = part.choices[0].finish_reason or finish
        first = first or (time.perf_counter() - begun if part.choices[0].delta.content else 0.0)
    if finish is None or len(prints) != 1:
        raise RuntimeError(f"a stream ended with {finish} from {prints}")
    return text, str(prints.pop()), time.perf_counter() - begun, first


def client_calls(server: Served, by_sampler: Sampler) -> dict[str, Any]:
    client = server.client()
    agree = all(
        ask(client, prompt, stream=stream)[0] == by_sampler.wanted["one", prompt]
        for prompt in by_sampler.prompts
        for stream in (False, True)
    )
    return {"client_calls_agree": agree}


def moves(
    server: Served, launch: Launch, ids: dict[str, str], by_sampler: Sampler, seconds: float, clients: int
) -> dict[str, Any]:
    """Clients ask while the champion moves to and fro."""
    ended = threading.Event()
    times: list[float] = []
    firsts: list[float] = []
    by_model: Counter[str] = Counter()
    dropped: list[str] = []
    mixed: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        client, done = server.client(), 0
        while not ended.is_set():
            prompt, stream = by_sampler.prompts[(number + done) % len(by_sampler.prompts)], done % 2 == 0
            done += 1
            try:
                text, fingerprint, took, first = ask(client, prompt, stream=stream)
            except (openai.OpenAIError, RuntimeError) as error:
                with lock:
                    dropped.append(str(error))
                continue
            name = fingerprint.split("@")[0].split("/")[1]
            with lock:
                times.append(took)
                by_model[name] += 1
                if stream:
                    firsts.append(first)
                if text != by_sampler.wanted[name, prompt]:
                    mixed.append(f"{name}: {prompt}")

    with Store.open(launch.db) as store, ThreadPoolExecutor(clients) as pool:
        registry = Registry(store, Workspace(launch.workspace))
        working = [pool.submit(work, number) for number in range(clients)]
        num_moves, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(MOVE_EVERY_S)
            num_moves += 1
            to = ids[("two", "one")[(num_moves + 1) % 2]]
            registry.set_alias(CHAMPION, to, actor="proof", reason=f"move {num_moves}")
        ended.set()
        for one in working:
            one.result()
    return {
        "requests": len(times) + len(dropped),
        "dropped": len(dropped),
        "mixed": len(mixed),
        "moves": num_moves,
        "answers_by_model": dict(by_model),
        "latency_p50_s": round(float(np.quantile(times, 0.5)), 4),
        "latency_p95_s": round(float(np.quantile(times, 0.95)), 4),
        "first_token_p50_s": round(float(np.quantile(firsts, 0.5)), 4),
        "first_token_p95_s": round(float(np.quantile(firsts, 0.95)), 4),
        "first_faults": (dropped + mixed)[:3],
    }


def throughput(server: Served, by_sampler: Sampler, clients: int, rounds: int = 5) -> dict[str, Any]:
    """Tokens a second: requests one after the other by the sampler, one after the other and at once by the endpoint."""
    wanted = [PROMPTS[i % len(PROMPTS)] for i in range(clients * rounds)]
    num_tokens = {prompt: by_sampler.write("one", prompt)[1] for prompt in PROMPTS}
    tokens = sum(num_tokens[prompt] for prompt in wanted)
    client = server.client()

    def timed(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return tokens / (time.perf_counter() - begun)

    # The sampler works in this process while the endpoint idles, and the other way round.
    alone = timed(lambda: [by_sampler.draw("one", prompt) for prompt in wanted])
    in_turn = timed(lambda: [ask(client, prompt, stream=False) for prompt in wanted])
    with ThreadPoolExecutor(clients) as pool:
        at_once = timed(lambda: list(pool.map(lambda prompt: ask(client, prompt, stream=False), wanted)))
    return {
        "tokens_per_s_sampler_one_at_a_time": round(alone, 1),
        "tokens_per_s_endpoint_one_at_a_time": round(in_turn, 1),
        "tokens_per_s_endpoint_at_once": round(at_once, 1),
        "throughput_ratio": round(at_once / alone, 2),
    }


def stop(server: Served, clients: int = 4) -> dict[str, Any]:
    """SIGTERM while answers are being written."""
    with ThreadPoolExecutor(clients) as pool:
        calls = [pool.submit(ask, server.client(), prompt, stream=True) for prompt in PROMPTS[:clients]]
        time.sleep(0.15)
        server.process.send_signal(signal.SIGTERM)
        lost = sum(call.exception() is not None for call in calls)
    code = server.process.wait(40)
    return {"lost_at_stop": lost, "exit_code": code}


if __name__ == "__main__":
    sys.exit(main())
