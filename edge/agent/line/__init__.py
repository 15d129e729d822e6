"""The device's side of the line to its fleet: what is said, what waits, what goes wrong."""
