"""What to keep, and when to save."""

import dataclasses

from . import _core
from .errors import InvalidError, InvalidTypeError

_MODES = {"min": _core.Mode.min, "max": _core.Mode.max}


@dataclasses.dataclass(frozen=True)
class Best:
    """Keep the `count` checkpoints with the lowest ("min") or highest ("max") value of a metric.

    NaN never is best; of equal ones the older is kept.
    """

    metric: str
    mode: str = "min"
    count: int = 1

    def __post_init__(self):
        if self.mode not in _MODES:
            raise InvalidError(f'mode is "min" or "max", not {self.mode!r}')
        if self.count < 1:
            raise InvalidError(f"count is at least 1, not {self.count}")


@dataclasses.dataclass(frozen=True)
class Every:
    """Again and again: after so many steps, after so much time, or (both given) after either.

    perdure.Every(steps=1000), perdure.Every(minutes=10), perdure.Every(steps=10_000, hours=6)
    """

    steps: int = 0
    seconds: float = 0.0
    minutes: float = 0.0
    hours: float = 0.0

    @property
    def time(self) -> float:
        """In seconds."""
        return self.seconds + 60 * self.minutes + 3600 * self.hours


def core_best(best) -> list:
    """Of a Best, or several."""
    return [_core.Best(b.metric, _MODES[b.mode], b.count) for b in as_list(best, Best)]


def as_list(thing, kind) -> list:
    return [thing] if isinstance(thing, kind) else list(thing)


def as_every(thing, option: str) -> Every:
    """Of an Every, a number of steps, or None."""
    if thing is None:
        return Every()
    if isinstance(thing, int) and not isinstance(thing, bool):
        return Every(steps=thing)
    if not isinstance(thing, Every):
        raise InvalidTypeError(
            f"{option} is a number of steps, or perdure.Every(steps=1000, minutes=10), not {thing!r}"
        )
    return thing
