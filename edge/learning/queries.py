"""Which samples to ask a label for, when labels cost something."""

from __future__ import annotations


class LabelRequests:
    """Asks for labels of uncertain samples, within a budget.

    Variable uncertainty (Žliobaitė et al. 2014, IEEE TNNLS 25(1), section III): a sample whose best class has a
    probability below a threshold is asked for; each request lowers the threshold by a hundredth and, while the budget
    lasts, each sample passed over raises it, so requests neither dry up nor flood.

    Args:
        budget: Share of samples that may be asked for, from 0 to 1.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._threshold = 1.0
        # Balances where the budget's share of the samples is below the threshold: the most uncertain ones.
        self._rise = 1.0 + 0.01 * min(1.0, budget / max(1.0 - budget, 1e-9))
        self._spent = 0.0  # share of the last hundred or so samples that was asked for

    def wants(self, confidence: float) -> bool:
        """Whether to ask for the label of a sample that was answered with this probability."""
        may = self._spent < self._budget
        ask = may and confidence < self._threshold
        if may:
            self._threshold = min(1.0, self._threshold * (0.99 if ask else self._rise))
        self._spent += 0.01 * (ask - self._spent)
        return ask

    def wake(self) -> None:
        """Something has changed: be curious again."""
        self._threshold = 1.0
