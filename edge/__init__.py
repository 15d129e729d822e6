"""Edgeloop: deploy a model to small Linux devices and keep its last layers learning there."""

__version__ = "0.1.0"
