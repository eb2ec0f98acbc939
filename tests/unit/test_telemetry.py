"""Log lines that cannot be written."""

from __future__ import annotations

import errno
import io
import os

import structlog

from chaindock import telemetry


class Full(io.StringIO):
    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_a_full_disk_fails_nobody_who_logs() -> None:
    stream, before = Full(), structlog.get_config()
    try:
        telemetry.configure(stream=stream)
        telemetry.get_logger("test").info("lost")
        stream.full = False
        telemetry.get_logger("test").info("kept")
    finally:
        structlog.configure(**before)
    assert "kept" in stream.getvalue()
    assert "lost" not in stream.getvalue()
