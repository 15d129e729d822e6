"""Signed metadata of The Update Framework: what devices may run, and who says so."""
