"""Where log lines go."""

from __future__ import annotations

import io

import pytest

from trellis_runtime.logs import configure_logging, logger


def test_a_line_goes_to_what_is_standard_error_when_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", first)
    configure_logging("error", "json")
    monkeypatch.setattr("sys.stderr", second)
    first.close()
    logger().error("worker_defunct", reason="a test")
    assert '"event": "worker_defunct"' in second.getvalue()
