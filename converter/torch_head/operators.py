"""All functions of operators, by operator; importing a module registers its functions."""

from __future__ import annotations

from converter.torch_head import elementwise, movement, normalization, products, reductions, windows
from converter.torch_head.call import OPERATORS

__all__ = ["OPERATORS", "elementwise", "movement", "normalization", "products", "reductions", "windows"]
