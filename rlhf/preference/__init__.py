"""Tuning without a critic: offline from ratings (DPO, its relatives, KTO), online from groups of samples."""
