"""Run a server that must not outlive us: ``python guard.py COMMAND …`` ends it when its standard input closes.

The pipe closes whichever way our process ends, SIGKILL included. Standard library only: this file is run by path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()

    def tell(number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the second of a dead group
            os.killpg(child.pid, number)

    def watch() -> None:
        while os.read(0, 4096):  # nothing when the last writer is gone; sys.stdin would hold a lock at exit
            pass
        tell(signal.SIGTERM)
        if not ended.wait(PATIENCE):
            tell(signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: tell(signal.SIGTERM))
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    ended.set()
    tell(signal.SIGKILL)  # workers that the server left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
