"""What the page of alerts says: what holds now, what held before, and by which rules."""

from __future__ import annotations

from typing import Any

from edge.contract.clock import Now
from edge.coordinator.alerts.rules import AlertRules, Rule
from edge.coordinator.pages.texts import text
from edge.coordinator.records import Alert
from edge.coordinator.store.store import Store

_MOST = 100


def alerts(store: Store, rules: AlertRules, now: Now) -> dict[str, Any]:
    """All that the page shows."""
    with store.transaction():
        found = store.alerts.open()
        before = [each for each in store.alerts.newest(_MOST) if each.state != "firing"]
    open_ones = sorted(found, key=lambda each: (each.acknowledged_ms > 0, each.silenced_ms > now.wall_ms, -each.id))
    return {
        "open": [(each, _standing(each, now)) for each in open_ones[:_MOST]],
        "n_open": len(found),
        "before": before,
        "rules": [(each, says(each)) for each in rules.rule],
        "webhook": rules.webhook.partition("?")[0],
        "mqtt": rules.mqtt,
    }


def _standing(alert: Alert, now: Now) -> str:
    if alert.silenced_ms > now.wall_ms:
        return "silenced"
    return "acknowledged" if alert.acknowledged_ms else "firing"


def says(rule: Rule) -> str:
    """A rule in words."""
    where = text("alert.where", select=rule.select) if rule.select else ""
    if rule.kind == "threshold":
        ends = [(rule.above, "alert.above"), (rule.below, "alert.below")]
        parts = [text(end, what=rule.key, limit=f"{limit:g}") for limit, end in ends if limit is not None]
        lasting = "" if rule.lasting.startswith("0") else text("alert.lasting", lasting=rule.lasting)
        return text("alert.or").join(parts) + lasting + where
    return text(f"alert.{rule.kind}", after=rule.after) + where
