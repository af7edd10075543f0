"""Runs commands and says what became of each, from a process so small that its own memory does not count.

    python hostile_commands.py SECONDS PROCESSES OUT

Reads a list of commands (lists of words) as JSON from its standard input, and writes a list of one object for each to
the file OUT: exit code (negative: the signal that ended it), what it printed, how long it took, and the most memory it had.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor


def run(command, seconds) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        timer = threading.Timer(seconds, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        answer = {"code": process.returncode, "seconds": time.monotonic() - start, "peak": usage.ru_maxrss << 10}
        for name, file in (("out", out), ("err", err)):
            answer[name + "_bytes"] = file.seek(0, os.SEEK_END)
            file.seek(0)
            answer[name] = file.read(1 << 20).decode("utf-8", "surrogateescape")
        return answer


def main():
    seconds, processes = float(sys.argv[1]), int(sys.argv[2])
    commands = json.load(sys.stdin)
    with ThreadPoolExecutor(processes) as pool, open(sys.argv[3], "w") as out:
        json.dump(list(pool.map(lambda command: run(command, seconds), commands)), out)


if __name__ == "__main__":
    main()
