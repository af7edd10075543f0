"""Lets the n-th system call of a real program fail, by strace, and finds out which calls it makes."""

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import typing

STRACE = shutil.which("strace")
TIMEOUT = 60  # seconds for anything; only a hang takes so long

# Calls that cannot fail, or whose failure means that the language's own runtime gives up.
IGNORED = {
    "clock_gettime", "clock_nanosleep", "execve", "exit", "exit_group", "futex", "getpid", "gettid", "kill", "munmap",
    "nanosleep", "poll", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield",
    "select", "set_robust_list", "set_tid_address", "tgkill", "wait4", "getuid", "geteuid", "getgid", "getegid",
}  # fmt: skip
OF_MEMORY = {"brk", "clone", "clone3", "madvise", "mmap", "mprotect", "mremap"}  # and threads
ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EAGAIN", "ENOMEM"]
KILL = "signal=KILL"


class Fault(typing.NamedTuple):
    """The n-th call of a name, in every thread, fails; or the process is killed as it makes it."""

    call: str
    what: str
    n: int

    def __str__(self):
        return f"{self.call}:{self.what}:when={self.n}"

    @staticmethod
    def parse(text):
        call, what, n = re.fullmatch(r"(\w+):(.+):when=(\d+)", text).groups()
        return Fault(call, what, int(n))


def whats_of(call):
    """What can become of a call. A transfer of 0 bytes: the file ends, or the disk takes nothing."""
    if call == "brk":
        return ["retval=0", KILL]  # it says no by not moving
    if call in OF_MEMORY:
        return ["error=ENOMEM", "error=EAGAIN", KILL]
    zero = ["retval=0"] if call in ("pread64", "pwrite64") else []
    return [f"error={error}" for error in ERRORS] + zero + [KILL]


class Injection(typing.NamedTuple):
    """A line of strace's of a call that was made to fail."""

    call: str
    text: str


def _calls(log):
    """Every call in a log, in order, as (thread, name, text); what it returned is added to the text."""
    calls, unfinished = [], {}
    for line in log.splitlines():
        if begun := re.match(r"(\d+) +(\w+)\((.*)", line):
            calls.append([*begun.groups()])
            unfinished[begun[1]] = calls[-1]
        elif (resumed := re.match(r"(\d+) +<\.\.\. (\w+) resumed>(.*)", line)) and resumed[1] in unfinished:
            unfinished[resumed[1]][2] += resumed[3]
    return calls


def injections(log):
    return [Injection(name, text) for _, name, text in _calls(log) if "(INJECTED)" in text]


def counts(log, begin=""):
    """For each name of the calls that are to fail: the number of the first one (those before the first mention of
    `begin` are the loader's, and not counted in), and of the last, in the thread that makes the most of them."""
    first, last = collections.Counter(), collections.Counter()
    by_thread = collections.Counter()
    begun = not begin
    for thread, name, text in _calls(log):
        begun = begun or begin in text
        by_thread[thread, name] += 1
        if name in IGNORED:
            continue
        if begun:
            first.setdefault(name, by_thread[thread, name])
            last[name] = max(last[name], by_thread[thread, name])
    return {name: (first[name], last[name]) for name in last}


class Outcome(typing.NamedTuple):
    status: int
    lines: list  # of what the program says
    leaked: list  # the descriptors that it has more at the end than at the beginning; None: it did not get there
    injections: list
    log: str


class Hang(Exception):
    pass


class _Alarm:
    """Ends a group of processes that takes too long."""

    def __init__(self, group):
        self._timer = threading.Timer(TIMEOUT, self._fire, [group])
        self.fired = False

    def _fire(self, group):
        self.fired = True
        os.killpg(group, signal.SIGKILL)

    def __enter__(self):
        self._timer.start()
        return self

    def __exit__(self, *exception):
        self._timer.cancel()
        if self.fired:
            raise Hang(f"it took more than {TIMEOUT} s")


def _arguments(log, fault, also):
    expressions = [*also, *([str(fault)] if fault else [])]
    names = ",".join({e.partition(":")[0] for e in expressions}) if fault else "all"
    injected = [x for e in expressions for x in ("-e", f"inject={e}")]
    return [STRACE, "-f", "-y", "-o", str(log), "-e", f"trace={names}", "-e", "signal=none", *injected]


def run(command, log, fault=None):
    """A program from its beginning, the loader's calls included."""
    quick = ["--seccomp-bpf"] if fault else []  # the other calls cost nothing
    arguments = [*_arguments(log, fault, ()), *quick, *map(str, command)]
    child = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0, errors="replace",
    )  # fmt: skip
    with _Alarm(child.pid):
        output, _ = child.communicate()
    text = log.read_text(errors="replace")
    return Outcome(child.returncode, output.splitlines(), [], injections(text), text)


class Driver:
    """A program that says "ready PID" and at the end "closed", waits for a line both times, and tells of itself on
    its standard output."""

    def __init__(self, command, env=None):
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            bufsize=1, process_group=0, env=env,
        )  # fmt: skip

    def ask(self, line=""):
        try:
            self._process.stdin.write(line + "\n")
        except BrokenPipeError:
            pass  # it is dead, which its status will tell

    def read_until(self, *words):
        """The lines up to one that begins with one of the words; or to the end."""
        lines = []
        for line in self._process.stdout:
            lines.append(line.rstrip("\n"))
            if line.split()[:1] and line.split()[0] in words:
                break
        return lines

    def examine(self, log, fault=None, also=(), pid=None):
        """Goes on from "ready", with a fault."""
        pid = pid or self._process.pid
        with _Alarm(self._process.pid):
            before = _descriptors(pid)
            strace = _attach(pid, log, fault, also)
            self.ask()
            lines = self.read_until("closed", "ended")
            leaked = None
            if lines and lines[-1] == "closed":
                leaked = sorted(set(_descriptors(pid).items()) - set(before.items()))
                self.ask()
                lines += self.read_until("ended")
            status = int(lines.pop().split()[1]) if lines and lines[-1].startswith("ended") else self.end()
        strace.wait(timeout=TIMEOUT)
        strace.stderr.close()
        text = log.read_text(errors="replace")
        made = [x for x in injections(text) if fault is None or x.call == fault.call]  # those of `also` always come
        return Outcome(status, lines, leaked, made, text)

    def end(self):
        with contextlib.suppress(BrokenPipeError):  # with what it was asked when it was dead
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(timeout=TIMEOUT)


def _descriptors(pid):
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            pass
    return found


def _attach(pid, log, fault, also):
    arguments = [*_arguments(log, fault, also), "-p", str(pid)]
    strace = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = strace.stderr.readline()
    if "attached" not in said:
        strace.wait()
        raise PermissionError(f"strace cannot look at a process here: {said}")
    return strace


def why_not():
    """Why there are no such tests here, or ""."""
    if STRACE is None:
        return "strace is not installed"
    tried = subprocess.run([STRACE, "-o", os.devnull, "true"], capture_output=True, text=True, timeout=TIMEOUT)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"
