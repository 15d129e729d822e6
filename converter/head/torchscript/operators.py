"""All functions of operators, by operator; importing a module registers its functions."""

from __future__ import annotations

from converter.head.torchscript import elementwise, movement, normalization, products, reductions, windows
from converter.head.torchscript.call import OPERATORS

__all__ = ["OPERATORS", "elementwise", "movement", "normalization", "products", "reductions", "windows"]
