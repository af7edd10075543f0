"""A bar on the terminal for what takes longer than a second."""

import contextlib
import sys
import threading

_PATIENCE = 1.0  # seconds before anything is shown
_PERIOD = 0.2


@contextlib.contextmanager
def shown(label: str, fraction):
    """While the block runs, for longer than a second, a terminal shows how far it is. `fraction()` gives 0.0 to 1.0;
    it is called in another thread."""
    if not _is_terminal(sys.stderr):
        yield
        return
    over = threading.Event()
    display = threading.Thread(target=_display, args=(label, fraction, over), daemon=True)
    display.start()
    try:
        yield
    finally:
        over.set()
        display.join()


def _is_terminal(stream) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none (pythonw), or closed
        return False


def _display(label, fraction, over):
    if over.wait(_PATIENCE):
        return
    bar = _bar(label)
    done = 0.0
    while not over.wait(_PERIOD):
        done = max(done, min(fraction(), 1.0))
        bar.show(done)
    bar.close()


def _bar(label):
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(label)
    return _TqdmBar(tqdm, label)


class _TqdmBar:
    def __init__(self, tqdm, label):
        self._bar = tqdm(total=100, desc=label, leave=False, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}")

    def show(self, done):
        self._bar.n = 100 * done
        self._bar.refresh()

    def close(self):
        self._bar.close()


class _PlainBar:
    def __init__(self, label):
        self._label = label

    def show(self, done):
        print(f"\r{self._label} {100 * done:3.0f}%", end="", file=sys.stderr, flush=True)

    def close(self):
        print(f"\r{' ' * (len(self._label) + 5)}\r", end="", file=sys.stderr, flush=True)
