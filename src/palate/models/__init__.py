"""Backbone, pooling, head and the saved contract of a reward model (knows no data layout and no loss)."""
