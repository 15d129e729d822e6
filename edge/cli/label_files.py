"""Files of labels, as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.contract.errors import ConfigError


def read_labels(path: Path) -> Iterator[dict[str, Any]]:
    """Labels of a file: a CSV with the columns id and label (others are ignored), or JSON lines with these keys.

    Rows without a label are passed over.

    Raises:
        ConfigError: It cannot be read, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as exc:
                raise ConfigError(f"{path}:{number}: expected JSON: {exc}") from exc
            if not isinstance(found, dict) or not {"id", "label"} <= found.keys():
                raise ConfigError(f"{path}:{number}: expected an object with id and label")
            yield {"id": found["id"], "label": found["label"], "weight": found.get("weight", 1.0)}
        return
    rows = csv.DictReader(io.StringIO(text))
    if not {"id", "label"} <= set(rows.fieldnames or ()):
        raise ConfigError(f"{path}: expected the columns id and label, got {', '.join(rows.fieldnames or ['nothing'])}")
    for row in rows:
        if row["id"] and (row["label"] or "").strip():
            try:
                weight = float(row.get("weight") or 1.0)
            except ValueError as exc:
                raise ConfigError(f"{path}:{rows.line_num}: weight: expected a number") from exc
            yield {"id": row["id"], "label": row["label"].strip(), "weight": weight}
