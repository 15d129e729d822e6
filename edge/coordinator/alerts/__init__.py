"""What people are told of without asking: rules, what holds now, and who was told."""
