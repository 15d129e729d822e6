from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from edge.cli.logs import MOST, SPAN_S, STYLES, Limit, Lines


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO, logging.StreamHandler[io.StringIO]]]:
    logger, out = logging.getLogger("edge.test-of-logs"), io.StringIO()
    handler = logging.StreamHandler(out)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, out, handler
    logger.removeHandler(handler)


def test_each_style_says_all_of_a_line_in_one(log) -> None:
    logger, out, handler = log
    for style in STYLES:
        handler.setFormatter(Lines(style))
        logger.warning("no broker: %s", 'cut "off"', extra={"fields": {"device": "pi-7", "detail": "a b"}})
    text, keys, line = out.getvalue().splitlines()
    assert text.endswith('no broker: cut "off"')
    assert 'level=warning logger=edge.test-of-logs msg="no broker: cut \\"off\\"" device=pi-7 detail="a b"' in keys
    found = json.loads(line)
    assert (found["level"], found["msg"], found["device"]) == ("warning", 'no broker: cut "off"', "pi-7")
    assert found["ts"].endswith("Z")


def test_a_traceback_is_a_field_of_json_and_lines_after_the_others(log) -> None:
    logger, out, handler = log
    for style in ("keys", "json"):
        handler.setFormatter(Lines(style))
        try:
            raise ValueError("it")
        except ValueError:
            logger.exception("failed")
    *_, last = out.getvalue().splitlines()
    assert "ValueError: it" in json.loads(last)["trace"]
    assert out.getvalue().count("ValueError: it") == 2


def test_a_flood_of_one_kind_is_cut_off_and_counted_and_costs_no_other_line(log) -> None:
    logger, out, handler = log
    now = [0.0]
    handler.setFormatter(Lines("keys"))
    handler.addFilter(Limit(lambda: now[0]))
    for n in range(1000):
        logger.error("it failed: %s", n)
        if n % 100 == 0:
            logger.error("another: %s", n)
    assert out.getvalue().count("it failed") == MOST
    assert out.getvalue().count("another") == 10
    now[0] = SPAN_S
    logger.error("it failed: %s", "again")
    assert f"left_out={1000 - MOST}" in out.getvalue().splitlines()[-1]
    for n in range(5000):  # nor does it grow
        logger.error(f"made up {n}")
    assert len(handler.filters[0]._kinds) <= 500
