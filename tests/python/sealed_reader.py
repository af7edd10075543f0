"""A process that seals itself (tests/cpp/sealed.cpp) and then does one thing, for test_sealed.py.

    python sealed_reader.py LIBRARY read             for each line on standard input, a path: loads and verifies it, in
                                                     every way, and prints what became of it, one line each
    python sealed_reader.py LIBRARY attempts FOLDER  what the seal must end it at, each in a child that seals itself, on
                                                     FOLDER/its name.pt; prints the name and the child's status
"""

import ctypes
import mmap
import os
import pickle
import socket
import sys
import threading

import torch

import perdure

SEALED_OUT = 98  # the status where this kernel has no such filters


def outcome_of(action):
    try:
        action()
        return "good"
    except perdure.Error as error:
        return type(error).__name__


def read(path):
    ways = {
        "load": lambda: perdure.load(path),
        "mapped": lambda: perdure.load(path, mmap=True),
        "verify": lambda: perdure.verify(path),
        "list": lambda: perdure.list_checkpoints(os.path.dirname(path)),
    }
    return " ".join(f"{name}:{outcome_of(action)}" for name, action in ways.items())


def read_all():
    for line in sys.stdin:
        path = line.rstrip("\n")
        print(path, flush=True)  # first: whoever ends us is named
        print(" ", read(path), flush=True)


def start_a_thread(path):
    thread = threading.Thread(target=perdure.load, args=[path])
    thread.start()
    thread.join()


ATTEMPTS = {
    "nothing": perdure.load,
    "a thread": start_a_thread,
    "unpickle": lambda path: pickle.load(open(path, "rb")),
    "torch.load": lambda path: torch.load(path, weights_only=False),
    "exec": lambda path: os.execv("/bin/true", ["true"]),
    "system": lambda path: os.system("true"),
    "fork": lambda path: os.fork(),
    "socket": lambda path: socket.socket(),
    "write": lambda path: open(path, "r+b"),
    "create": lambda path: open(path + ".new", "wb"),
    "remove": lambda path: os.remove(path),
    "rename": lambda path: os.rename(path, path + ".new"),
    "make a folder": lambda path: os.mkdir(path + ".new"),
    "executable memory": lambda path: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "kill": lambda path: os.kill(os.getppid(), 0),
}


def attempt_each(library, folder):
    for name, attempt in ATTEMPTS.items():
        if not (child := os.fork()):
            library.perdure_seal()
            attempt(os.path.join(folder, f"{name}.pt"))
            os._exit(0)
        print(f"{name}: {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


def main():
    path, what, *folder = sys.argv[1:]
    read(path)  # whatever is imported or opened once, is by now
    library = ctypes.CDLL(path)
    if what == "attempts":
        return attempt_each(library, *folder)
    if library.perdure_seal() != 0:
        os._exit(SEALED_OUT)
    read_all()
    os._exit(0)


if __name__ == "__main__":
    main()
