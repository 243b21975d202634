"""Reward models to and from other stacks: exports that are loaded again as their consumer loads them, imports that say what they decided."""
