"""Which faults are tried on a program, and what is asked of it whatever fails.

PERDURE_SYSCALLS: empty, a sample, which PERDURE_SEED repeats; "all", every call at n = 1, 2, ... until none is left that
fails; a number, a sample of that size of each program. PERDURE_FAULT="PROGRAM CALL:error=ERRNO:when=N" is that one.
"""

import fcntl
import os
import random
import re
import time

import syscalls
from syscalls import OF_MEMORY, Fault

SEED = int(os.environ.get("PERDURE_SEED") or 1)  # always the same ones, in `make test`
HOW_MANY = os.environ.get("PERDURE_SYSCALLS", "")
ONLY = os.environ.get("PERDURE_FAULT", "")


def faults_of(counts, sample):
    """`sample` of all faults that a run had calls for; or all, where 0."""
    everything = [
        Fault(call, what, n)
        for call, (first, last) in sorted(counts.items())
        for what in syscalls.whats_of(call)
        for n in range(first, last + 1)
    ]
    if not sample or sample >= len(everything):
        return everything
    return random.Random(SEED).sample(everything, sample)


def go_through(name, counts, try_fault, sample):
    """Tries the faults; with all of them, also those beyond what the run without any had calls for."""
    if ONLY:
        wanted, _, fault = ONLY.partition(" ")
        return wanted == name and try_fault(Fault.parse(fault))
    sample = sample if HOW_MANY == "" else 0 if HOW_MANY == "all" else int(HOW_MANY)
    fired = 0
    for fault in faults_of(counts, sample):
        fired += bool(judged(name, fault, try_fault))
    if not sample:
        for call, (_, last) in counts.items():
            for what in syscalls.whats_of(call):
                n = last + 1
                while judged(name, Fault(call, what, n), try_fault):
                    n, fired = n + 1, fired + 1
    print(f"{name}: {fired} faults; PERDURE_SEED={SEED}")
    assert fired > 0, "nothing has failed, so nothing was tested"


def judged(name, fault, try_fault):
    """Whether it came to that fault."""
    try:
        return try_fault(fault)
    except (AssertionError, syscalls.Hang) as error:
        raise AssertionError(f"{error}\nto repeat: PERDURE_FAULT='{name} {fault}'") from error


def is_clear(text, fault, *places):
    """Whether the text of an error says where; of memory that is short, that is no question."""
    if fault.call in OF_MEMORY or "ENOMEM" in fault.what:
        if re.search("memory|bad_alloc|Cannot allocate|Resource temporarily unavailable", text):
            return True
    return any(str(place) in text for place in places)


def wait_until_dead(run):
    """Of a process that was killed, the kernel may hold what it had in flight, and so the lock of its file, for a moment
    longer than the process; whoever starts in that moment has to leave the file to the next one."""
    for path in run.glob(".*.tmp"):
        until = time.monotonic() + 10
        while is_locked(path) and time.monotonic() < until:
            time.sleep(0.005)


def is_locked(path):
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def debris(run):
    trash = run / ".trash"
    left = [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
    return left + (os.listdir(trash) if trash.is_dir() else [])


def is_of_no_concern(outcome):
    """The driver's own words, and standard streams."""
    own = re.compile(r"[012]<")
    return any(x.call in ("read", "write") and own.match(x.text) for x in outcome.injections)
