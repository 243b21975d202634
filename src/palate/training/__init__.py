"""Config to checkpoint: settings, RewardConfig, RewardTrainer, and `run`, which reads like a recipe."""
