"""From the parts to files: whole or none."""
