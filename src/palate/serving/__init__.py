"""Rewards over HTTP and as functions of RL stacks: one server, many dialects, one scorer behind them."""
