"""What the core tells: to logging.getLogger("perdure"), which prints it where logging is not configured."""

import logging

_logger = logging.getLogger("perdure")


def warn(text: str) -> None:
    _logger.warning("%s", text)


def note(text: str) -> None:
    _logger.info("%s", text)
