"""What perdure raises. Every class is an `Error`, and where Python has a word for it also that:

    except perdure.Error            # anything
    except OSError as e: e.errno    # the operating system refused (IoError, FullError, NotFoundError)
    except ValueError, TypeError    # an argument or a state that does not fit (InvalidError)

`error.code` is the same word as in C++: "io", "corrupt", "not_found", "invalid", "unsupported", "cancelled",
"full", "locked".
"""

import errno


class Error(RuntimeError):
    """The base of all. `code` says which kind it is; the text says what happened, where, and what to do."""

    code = "invalid"

    def __init__(self, text: str):
        super().__init__(text)


class CorruptionError(Error):
    """The bytes are provably damaged: structure or checksum. The only error that a restore falls back on."""

    code = "corrupt"


class InvalidError(Error, ValueError):
    """Arguments or state do not fit: a wrong shape or name, an order of calls that cannot be."""

    code = "invalid"


class InvalidTypeError(InvalidError, TypeError):
    """A value of a type that a checkpoint cannot hold. The text names its place and what to write instead."""


class UnsupportedError(Error):
    """Whole and well-formed, but not something that this version can take."""

    code = "unsupported"


class LockedError(Error):
    """Another live process or manager holds the run directory."""

    code = "locked"


class CancelledError(Error):
    """Given up because the owner was closed."""

    code = "cancelled"


class IoError(Error, OSError):
    """The operating system refused; `errno` says why."""

    code = "io"

    def __init__(self, text: str, errno_value: int = errno.EIO):
        OSError.__init__(self, errno_value, text)

    def __str__(self) -> str:  # the text has errno's own words in it already
        return self.strerror or ""


class FullError(IoError):
    """No space or quota is left, or the file would pass a size limit."""

    code = "full"


class NotFoundError(IoError, FileNotFoundError):
    """A file, step or key that was asked for by name does not exist."""

    code = "not_found"


_CLASSES = {
    cls.code: cls for cls in (CorruptionError, InvalidError, UnsupportedError, LockedError, CancelledError)
}
_OS_CLASSES = {  # class, and the errno where the core knows none
    "io": (IoError, errno.EIO),
    "full": (FullError, errno.ENOSPC),
    "not_found": (NotFoundError, errno.ENOENT),
}


def from_core(code: str, text: str, errno_value: int) -> Error:
    """The exception for an error of the C++ core. Called by the module perdure._core."""
    if code in _OS_CLASSES:
        cls, default = _OS_CLASSES[code]
        return cls(text, errno_value or default)
    return _CLASSES[code](text)
