"""What a coordinator needs around it: disk, backup, broker, configuration of both."""
