"""Rollouts: how one release reaches a fleet in waves, and what may stop it. Values in, values out; no files, no clock.

`plan` is what a person writes, `query` whom it is for, `waves` in which order; `states` are the two tables, `gates`
judge canaries, and `advance` takes a rollout one step further.
"""
