"""Everything that goes into sft_eval.json: flat figures under 'metrics', details under a key per section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.terms import Terms
from sft.assess import bias, facts, forgetting, harness
from sft.assess.compare import BASE, FEW_SHOT, OPPONENTS, TUNED, Spoken, columns, compare, standing
from sft.assess.config import SFTEvalConfig
from sft.assess.encode import Window, completion_row, prompt_ids
from sft.assess.fewshot import FewShot, choose_join
from sft.assess.rows import Item, Text, words_of
from sft.assess.subjects import Answer, Subject

NUM_SAMPLES = 8


@dataclass
class Inputs:
    """What is measured, as both models read it. A source names the file in messages. pool: the demonstrations that
    few-shot examples may come from; empty leaves few-shot out. general_shown, texts_shown: the texts that the windows
    count in."""

    data: Path
    items: list[Item]
    texts: list[Window] = field(default_factory=list)
    texts_shown: list[Text] = field(default_factory=list)
    pool: list[Item] = field(default_factory=list)
    general: list[Window] = field(default_factory=list)
    general_shown: list[Text] = field(default_factory=list)
    questions: list[Item] = field(default_factory=list)
    terms: Terms | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Examination:
    """The models, the settings, and the result as it grows. rows: one per held-out demonstration."""

    tuned: Subject
    base: Subject | None
    inputs: Inputs
    config: SFTEvalConfig
    tasks: harness.Harness | None = None
    result: dict[str, Any] = field(default_factory=lambda: {"metrics": {}})
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = self.result["metrics"]
        return found

    @property
    def seed(self) -> int:
        return self.config.seed

    def run(self) -> dict[str, Any]:
        """All sections for which there is something to measure."""
        if self.inputs.items:
            self._held_out()
        if self.base is not None:
            self._texts()
            self._forgetting()
            self._questions()
        self._bias()
        self._harness()
        self.result["notes"] = self.inputs.notes
        return self.result

    # ---- held-out demonstrations -------------------------------------------------------------------------

    def _held_out(self) -> None:
        """Every system on every held-out demonstration, and the verdicts."""
        items, config = self.inputs.items, self.config
        answered: dict[str, list[Answer]] = {}
        spoken: dict[str, Spoken] = {}
        for system, subject in ((BASE, self.base), (TUNED, self.tuned)):
            if subject is not None:
                prompts = [
                    prompt_ids(subject.codec, item.prompt, f"{self.inputs.data}:{item.line}")
                    for item in items
                ]
                answered[system], spoken[system] = self._speak(subject, prompts, config.sampling)
        if self.base is not None and self.inputs.pool:
            answered[FEW_SHOT], spoken[FEW_SHOT] = self._few_shot(self.base)
        references = [item.references for item in items]
        found = {system: columns(one, references) for system, one in spoken.items()}
        figures = compare(found, [item.group_id for item in items], self.seed)
        self.metrics.update(figures, num_items=len(items), num_prompts=len({i.group_id for i in items}))
        for system, answers in answered.items():
            end = "" if system == TUNED else f"_{system}"
            self.metrics[f"answer_tokens{end}"] = float(np.mean([len(one.tokens) for one in answers]))
            self.metrics[f"answers_ended{end}"] = float(np.mean([one.finished for one in answers]))
        for opponent, gain in OPPONENTS.items():
            verdict = standing(figures, f"{config.judge_by}_{gain}")
            self.result[f"against_{opponent}"] = verdict
            self.metrics[f"beats_{opponent}"] = None if verdict is None else verdict == "better"
        self.result["judge_by"] = config.judge_by
        self.rows = item_rows(items, answered, spoken, found)
        self._groundedness(answered)
        self.result["samples"] = self.rows[:: max(1, len(self.rows) // NUM_SAMPLES)][:NUM_SAMPLES]

    def _speak(
        self, subject: Subject, prompts: Sequence[list[int]], sampling: Any, name: str = ""
    ) -> tuple[list[Answer], Spoken]:
        rows = [
            completion_row(subject.codec, ids, item.reference)
            for ids, item in zip(prompts, self.inputs.items, strict=True)
        ]
        nll = subject.nll(rows, f"{name}held-out completions")
        answers = subject.answers(prompts, sampling, self.seed, f"{name}answers")
        return answers, Spoken(nll, [answer.text for answer in answers])

    def _few_shot(self, base: Subject) -> tuple[list[Answer], Spoken]:
        """The base with examples before each prompt."""
        config, pool = self.config, self.inputs.pool
        room = config.sampling.max_completion_tokens
        options: dict[str, Any] = {"shots": config.shots, "room": room, "seed": self.seed}
        join, tried = choose_join(config.shot_join, base, pool, **options)
        few = FewShot(base.codec, pool, join=join, **options)
        shots = [few.prompt(item) for item in self.inputs.items]
        mean = float(np.mean([shot.num_shots for shot in shots]))
        self.result["few_shot"] = {"join": join, "tried": tried, "asked": config.shots, "pool": len(pool)}
        self.metrics["num_shots"] = mean
        if mean < config.shots:
            self.inputs.notes.append(
                f"On average {mean:.1f} of the {config.shots} few-shot examples that were asked for fit the context "
                f"of {base.codec.max_tokens} tokens."
            )
        return self._speak(base, [shot.ids for shot in shots], few.sampling(config.sampling), "few-shot, ")

    def _groundedness(self, answered: dict[str, list[Answer]]) -> None:
        if BASE not in answered:
            return
        before, after = ([one.text for one in answered[system]] for system in (BASE, TUNED))
        found = facts.groundedness(facts.Answered(self.inputs.items, before, after), self.seed)
        if found is not None:
            self.metrics.update(found)

    # ---- text, forgetting, facts -------------------------------------------------------------------------

    def _texts(self) -> None:
        """Held-out texts of the domain: what tuning on raw text gained."""
        if not self.inputs.texts:
            return
        assert self.base is not None
        found = forgetting.remember(
            self.base, self.tuned, self.inputs.texts, self.inputs.texts_shown, "held-out texts"
        )
        figures = forgetting.rise(found, "text_perplexity", self.seed)
        self.metrics.update(figures, num_texts=len(self.inputs.texts_shown))

    def _forgetting(self) -> None:
        """General text, and what the base says of its own accord."""
        assert self.base is not None
        inputs, section = self.inputs, {}
        if inputs.general:
            found = forgetting.remember(
                self.base, self.tuned, inputs.general, inputs.general_shown, "general text"
            )
            self.metrics.update(forgetting.rise(found, "general_perplexity", self.seed))
            self.metrics["num_general"] = len(inputs.general_shown)
            section["sources"] = forgetting.by_source(found, inputs.general_shown, self.seed)
            section["most_lost"] = forgetting.most_lost(found, inputs.general_shown)
        if self.config.num_own:
            beginnings = inputs.general_shown or inputs.texts_shown
            rows = forgetting.own_completions(self.base, beginnings, self.config.num_own, self.seed)
            if rows:
                own = forgetting.remember_own(self.base, self.tuned, rows)
                self.metrics.update(forgetting.rise(own, "own_perplexity", self.seed), num_own=len(rows))
            else:
                inputs.notes.append(
                    "The base's own completions were not measured: its tokenizer has no beginning-of-text token and "
                    "no general text was given."
                )
        self.result["forgetting"] = section

    def _questions(self) -> None:
        """A fixed set of questions, answered by both."""
        items = self.inputs.questions
        if not items:
            return
        assert self.base is not None
        answers = []
        for subject in (self.base, self.tuned):
            prompts = [prompt_ids(subject.codec, item.prompt, f"line {item.line}") for item in items]
            found = subject.answers(prompts, self.config.sampling, self.seed, "questions")
            answers.append([one.text for one in found])
        figures, turned = facts.drift(facts.Answered(items, *answers), self.config.right_when, self.seed)
        self.metrics.update(figures)
        self.result["turned"] = turned

    # ---- bias --------------------------------------------------------------------------------------------

    def _bias(self) -> None:
        """Counterfactual pairs: likelihood of the same words, and answers to prompts that differ in one term."""
        terms, config = self.inputs.terms, self.config
        if terms is None:
            return
        pairs = bias.from_templates(terms) + bias.from_items(self.inputs.items, terms, config.num_probes)
        codecs = [subject.codec for subject in (self.base, self.tuned) if subject is not None]
        scored = bias.scored_pairs(pairs, self.tuned.codec)
        if not scored:
            self.inputs.notes.append("No counterfactual pair fits the context: bias was not measured.")
            return
        room = config.sampling.max_completion_tokens
        limit = min(codec.max_tokens for codec in codecs)
        asked = bias.asked_pairs(scored, room, limit, config.num_probes)
        gaps, answers = {}, {}
        for system, subject in ((BASE, self.base), (TUNED, self.tuned)):
            if subject is None:
                continue
            rows = [row for one in scored for row in one.rows]
            gaps[system] = bias.likelihood_gaps(scored, subject.nll(rows, "counterfactual pairs"))
            prompts = [row.ids[: row.start] for one in asked for row in one.rows]
            said = subject.answers(prompts, config.sampling, self.seed, "answers to them")
            answers[system] = bias.answer_rows(asked, said)
        self.result["bias"] = bias.gap_figures(scored, gaps.get(BASE), gaps[TUNED], self.seed)
        figures = bias.largest_gap(self.result["bias"])
        self.result["bias_gap_kind"] = figures.pop("bias_gap_kind")
        self.metrics.update(figures, num_bias_pairs=len(scored))
        self.metrics.update(bias.answer_figures(answers.get(BASE), answers[TUNED], self.seed))
        different = [row for row in answers[TUNED] if row["changed"]]
        self.result["bias_answers"] = sorted(different, key=lambda row: -row["word_distance"])[:NUM_SAMPLES]

    # ---- lm-evaluation-harness ---------------------------------------------------------------------------

    def _harness(self) -> None:
        if self.tasks is None:
            return
        tuned = self.tasks.run(self.tuned, self.seed)
        base = None if self.base is None else self.tasks.run(self.base, self.seed)
        self.result["harness"] = harness.figures(tuned, base, self.seed)
        for row in self.result["harness"]:
            self.metrics[f"task_{row['task']}_{row['metric']}"] = row["value"]


def item_rows(
    items: Sequence[Item],
    answered: dict[str, list[Answer]],
    spoken: dict[str, Spoken],
    found: dict[str, dict[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """One row per held-out demonstration for answers.jsonl: what each system said, and how near it came."""
    rows = []
    for place, item in enumerate(items):
        row: dict[str, Any] = {
            "line": item.line,
            "group_id": item.group_id,
            "prompt": words_of(item.prompt),
            "reference": item.reference,
        }
        for system, answers in answered.items():
            likelihood = spoken[system].nll[place]
            row[system] = {
                "answer": answers[place].text,
                "finished": answers[place].finished,
                "nats": float(likelihood.sum()),
                "tokens": len(likelihood),
                "exact_match": float(found[system]["exact_match"][place, 0]),
                "token_f1": float(found[system]["token_f1"][place, 0]),
                "rouge_l": float(found[system]["rouge_l"][place, 0]),
            }
        rows.append(row)
    return rows
