"""The machine that the agent runs on: its health, its time, its service manager."""
