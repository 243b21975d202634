"""Rewards in, unreduced losses out: pure functions of tensors, one value per comparison (torch only)."""
