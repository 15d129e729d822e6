"""Programs: models and graphs as functions of named arrays, and the border to foreign code."""
