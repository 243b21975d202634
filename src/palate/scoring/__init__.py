"""Scorers over checkpoints: everything after training sees only `score(conversations) -> float32 [N]`."""
