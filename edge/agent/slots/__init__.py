"""Releases on disk: what is live, what was before it, and what is on its way."""
