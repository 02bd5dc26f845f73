"""SIGINT and SIGTERM, met between two steps; of several processes, by all at the same one."""

import os
import signal
from types import FrameType, TracebackType

import jax

from balms_jax.training import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPING = 'signal {}: stopping after this step; a second one stops at once\n'


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
        self._asked: jax.Array | None = None

    def agreed(self) -> int | None:
        """The signal that ends the run now, for all processes alike; None to go on.

        Of several processes one may hear of its end before the others. What each has met is then
        gathered on the devices, and read when asked again, so that nothing waits for it.
        """
        if jax.process_count() == 1:
            return self.signal
        answer = self._asked
        self._asked = processes.largest(self.signal or 0)
        return (int(answer) or None) if answer is not None else None

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
        os.write(2, STOPPING.format(number).encode())  # Printing is not safe within a handler.
        for each, handler in self._earlier.items():
            signal.signal(each, handler)
