"""These tests import onnxruntime themselves, before the converter can turn its telemetry off."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
