"""The live line on a terminal: one line per step that never wraps, with the log above it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios

import pytest

STEPS = """
import logging
from east_ray.console import progress, set_up_logging
set_up_logging()
with progress("sample", 500) as bar:
    for done in range(0, 501, 100):
        bar.update(done, samples=64 * done, tokens_per_second=11471.0, mean_length=22.4, truncated=0.125, accuracy=0.19)
        logging.getLogger("east_ray").info("shard %d", done)
"""


def shown_on_a_terminal(code: str, columns: int) -> str:
    """What a Python program writes to a terminal of this width."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        os.execve(sys.executable, [sys.executable, "-c", code], {**environment, "TERM": "xterm-256color"})
    written = b""
    try:
        while block := os.read(terminal, 1 << 16):
            written += block
    except OSError:  # how Linux says that the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return written.decode()


@pytest.mark.parametrize("columns", [70, 120])
def test_a_steps_line_fits_the_terminal_and_the_log_stands_above_it(columns: int) -> None:
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown_on_a_terminal(STEPS, columns))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain)]
    assert max(map(len, lines)) <= columns
    bars = [line for line in lines if "sample" in line and "questions" in line]
    assert "500/500 questions" in bars[-1]
    assert "samples 32,000" in bars[-1]
    assert [line.split()[-1] for line in lines if "shard" in line] == ["0", "100", "200", "300", "400", "500"]
    assert lines.index(bars[-1]) > max(i for i, line in enumerate(lines) if "shard" in line)
