"""One line out of an exception that is not ours, see `edge.contract.foreign`."""

from edge.contract.foreign import reason

__all__ = ["reason"]
