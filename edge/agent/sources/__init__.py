"""Where samples come from, and where answers go."""
