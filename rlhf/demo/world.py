"""The files of the embedded world, as a user would bring them, and the base model pretrained on its texts."""

from __future__ import annotations

from pathlib import Path

from rlhf.core.files import read_rows, write_jsonl
from rlhf.core.run import Launch, Run
from rlhf.demo import corpus, model
from rlhf.demo.config import DemoConfig

SIMULATED_WRITER = "simulated writer"
CORPUS, DEMONSTRATIONS = "corpus.jsonl", "demonstrations.jsonl"
RATED, PPO, PPO_EVAL, HELDOUT = (
    "rated_prompts.jsonl",
    "ppo_prompts.jsonl",
    "ppo_eval_prompts.jsonl",
    "heldout_prompts.jsonl",
)
NUM_PPO_EVAL = 64
TOKENIZER_SAMPLE = 8000
COLUMNS = ("message", "reply", "notes")


def write_files(config: DemoConfig, folder: Path) -> None:
    """Write the corpus, the demonstrations and four sets of prompts; no message is in two of them."""
    taken: set[str] = set()
    for name, num, heldout in (
        (HELDOUT, config.num_heldout_prompts, True),
        (RATED, config.num_rated_prompts, False),
        (PPO, config.num_ppo_prompts, False),
        (PPO_EVAL, NUM_PPO_EVAL, False),
    ):
        use = name.partition("_prompts")[0]
        prompts = corpus.make_prompts(config.seed, num, name=use, heldout=heldout, taken=taken)
        write_jsonl(folder / name, prompts)
    demonstrations = corpus.make_demonstrations(config.seed, config.num_demonstrations, taken=taken)
    write_jsonl(
        folder / DEMONSTRATIONS,
        (
            {
                "prompt": prompt.text,
                "completion": reply,
                "group_id": prompt.group_id,
                "annotator_id": SIMULATED_WRITER,
                "source": corpus.SOURCE,
            }
            for prompt, reply in demonstrations
        ),
    )
    num = config.pretrain_steps * config.pretrain_batch_size
    conversations = corpus.pretraining_conversations(config.seed, num, taken=taken)
    write_jsonl(folder / CORPUS, (dict(zip(COLUMNS, texts, strict=True)) for texts in conversations))


def pretrain(config: DemoConfig, launch: Launch, corpus_file: Path) -> None:
    """Make the base model in launch.out: an ordinary run directory with a `model` folder."""
    assert launch.out is not None
    with Run.start(
        launch.out,
        stage="base",
        settings=config,
        launch=launch,
        parents={"data": corpus_file},
        seed=config.seed,
    ) as record:
        if record.finished:
            return
        conversations = [(row["message"], row["reply"], row["notes"]) for _, row in read_rows(corpus_file)]
        texts = (text for texts in conversations[:TOKENIZER_SAMPLE] for text in (*texts[:2], f" {texts[2]}"))
        tokenizer = model.build_tokenizer(texts, config.vocab_size)
        base = model.build_model(
            tokenizer, hidden_size=config.hidden_size, num_layers=config.num_layers, seed=config.seed
        )
        how = model.Pretraining(
            config.pretrain_steps, config.pretrain_batch_size, config.pretrain_lr, config.seed
        )
        record.metrics.truncate_after(-1)
        losses = model.pretrain(base, tokenizer, conversations, how, log=record.metrics)
        model.save(base, tokenizer, record.path / "model")
        tail = losses[-max(1, len(losses) // 10) :]
        record.finish(
            {
                "loss_before": losses[0],
                "loss": sum(tail) / len(tail),
                "num_parameters": base.num_parameters(),
                "num_conversations": how.num_steps * how.batch_size,
                "vocab_size": len(tokenizer),
            }
        )
        print(
            f"base: {base.num_parameters():,} parameters, loss {losses[0]:.2f} -> {sum(tail) / len(tail):.3f}"
        )
