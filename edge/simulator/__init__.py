"""Many devices in few processes: the agent as it is, in a world and with faults that a scenario gives."""
