"""The parts of `kills.py`, `kills_reward.py` and `kills_sft.py`: runs that are killed, resumed and compared."""
