"""SIGINT and SIGTERM, met between two steps."""

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - no error: the run was asked to stop, and did.
    """The run stopped at a signal, with its checkpoint written."""

    def __init__(self, signal_number: int, message: str) -> None:
        """Keeps the signal, for the exit code."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interruption:
    """Notes a signal instead of dying of it; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> 'Interruption':
        """Takes the signals over."""
        self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signals back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for each, handler in self._earlier.items():
            signal.signal(each, handler)
