"""What the fleet learned: contributions, merges, questions, forgetting."""
