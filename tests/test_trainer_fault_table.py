"""What was measured of plain transformers.Trainer when runs are cut short, row by row, with the tests that the
supervised stage (which trains through it) and the reward loop do not have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# transformers 5.23, trl 1.16. fault -> stage -> tests; "core" holds for every stage.
FAULTS = {
    "checkpoints are not committed at once: after kills near saves 5 of 5 runs could not resume": {
        "core": ["test_a_write_that_fails_leaves_what_was_there"],
        "sft": ["test_a_killed_supervised_run_loses_nothing"],
        "reward": ["test_a_killed_reward_run_loses_nothing"],
    },
    "the highest number is taken, complete or not": {
        "core": ["test_a_directory_without_manifest_is_ignored"],
        "sft": ["test_an_incomplete_checkpoint_with_the_highest_number_is_ignored"],
        "reward": ["test_an_incomplete_reward_checkpoint_with_the_highest_number_is_ignored"],
    },
    "relaunching a finished run trains one more step": {
        "sft": [
            "test_a_finished_run_is_left_alone",
            "test_a_run_killed_while_saving_adds_no_step",
            "test_a_run_killed_after_its_patience_ran_out_trains_no_further",
        ],
        "reward": ["test_a_finished_reward_run_trains_nothing"],
    },
    "a missing optimizer, scheduler or generator state resumes with other weights": {
        "sft": ["test_a_damaged_part_of_the_state_costs_two_steps_and_no_bit"],
        "reward": ["test_a_damaged_reward_state_costs_steps_and_no_bit"],
    },
    "a flipped bit resumes with other weights": {
        "core": ["test_damage_to_any_file_is_found_and_the_older_one_used"],
        "sft": [
            "test_damage_to_any_file_is_found_and_the_older_checkpoint_used",
            "test_a_damaged_part_of_the_state_costs_two_steps_and_no_bit",
        ],
        "reward": ["test_damage_to_any_file_of_a_reward_checkpoint_is_found"],
    },
    "NaN: the run finishes, logs loss 0.0 and saves NaN weights": {
        "sft": [
            "test_nan_ends_the_command_with_3_and_no_checkpoint_holds_it",
            "test_a_stop_saves_no_weights_that_are_not_finite",
            "test_a_loss_that_is_not_finite_stops_the_run",
        ],
        "reward": [
            "test_nan_ends_a_reward_run_with_3_and_no_checkpoint_holds_it",
            "test_a_stopped_reward_run_saves_no_weights_that_are_not_finite",
        ],
    },
    "SIGTERM ends with 0 after a part of the run, and a script publishes a half-trained model": {
        "sft": [
            "test_sigterm_ends_the_command_with_143_and_without_a_model",
            "test_a_kill_while_the_model_is_written_leaves_no_half_of_it",
        ],
        "reward": [
            "test_sigterm_ends_a_reward_run_with_143_and_without_an_adapter",
            "test_sigterm_to_the_command_ends_with_143",
        ],
    },
    "out of memory changes the batch size": {
        "sft": [
            "test_memory_that_runs_out_halves_the_passes_and_keeps_the_batch",
            "test_a_pass_begins_again_from_the_gradients_before_it",
            "test_a_halved_budget_is_part_of_the_state",
            "test_one_demonstration_that_does_not_fit_stops_with_3_and_one_line",
        ],
        "reward": ["test_out_of_memory_halves_the_micro_batch_and_changes_no_step"],
    },
}


def defined_in(folder: Path) -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in folder.rglob("test_*.py")]
    return {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_trainer_has_its_tests(fault: str) -> None:
    assert {"sft", "reward"} <= FAULTS[fault].keys()
    for stage, names in FAULTS[fault].items():
        assert names
        missing = set(names) - defined_in(Path(__file__).parent / stage)
        assert not missing, f"tests/{stage}"
