"""Learning on the devices of a fleet: tasks, rules and baselines that others can run; see README.md beside this."""
