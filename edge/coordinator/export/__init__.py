"""What other programs read: numbers for Prometheus, files for people's own tools."""
