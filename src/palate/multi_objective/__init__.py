"""Many rewards from one model: directions of preference, adaptation to a user, attributes and their gate."""
