"""All differentiation rules, by operator; importing a module registers its rules."""

from __future__ import annotations

from converter.head.gradient import elementwise, movement, normalization, products, reductions, windows
from converter.head.gradient.tape import RULES

__all__ = ["RULES", "elementwise", "movement", "normalization", "products", "reductions", "windows"]
