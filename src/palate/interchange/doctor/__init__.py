"""Checks of a saved reward model: its own contract, and what each consumer of such folders would do with it. One file a family of consumers."""
