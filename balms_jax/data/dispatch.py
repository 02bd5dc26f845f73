"""How tasks reach worker processes, each worker's in order, when they were decided in the parent.

Grain's workers read by number from a source that they hold a copy of. This source's numbers are
only turns: worker w waits at its w-th connection for the task that the parent sends next.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from multiprocessing import connection, process
from typing import Any, Protocol

_END = object()


class Inbox(Protocol):
    """A source of tasks: turn k is that of worker k modulo the number of workers."""

    def __len__(self) -> int:
        """More turns than there ever will be."""

    def __getitem__(self, turn: int) -> Any:
        """Waits for the worker's next task."""


class LocalDispatcher:
    """Hands tasks to a reader in the same process.

    Example:
        >>> dispatcher = LocalDispatcher()
        >>> dispatcher.send(0, 'task')
        >>> dispatcher.inbox[0]
        'task'
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.inbox: Inbox = _LocalInbox(self._tasks)

    def send(self, worker: int, task: Any) -> None:
        """Adds a task."""
        del worker
        self._tasks.put(task)

    def close(self) -> None:
        """Does nothing."""


class ProcessDispatcher:
    """Hands tasks to workers in other processes, over local sockets with the parent's key.

    Args:
        workers: W, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self._tasks: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(workers)]
        self._listener = connection.Listener(authkey=process.current_process().authkey)
        self._closed = threading.Event()
        self.inbox: Inbox = _RemoteInbox(self._listener.address, workers)
        self._threads = [_start(self._accept)]

    def send(self, worker: int, task: Any) -> None:
        """Adds a task for a worker; never waits."""
        self._tasks[worker].put(task)

    def close(self) -> None:
        """Ends every worker's wait; a worker that still waits raises EOFError."""
        if self._closed.is_set():
            return
        self._closed.set()
        for tasks in self._tasks:
            tasks.put(_END)
        # Nothing else ends a wait for a connection.
        with contextlib.suppress(OSError, EOFError):
            connection.Client(
                self._listener.address, authkey=process.current_process().authkey
            ).close()
        for thread in self._threads:
            thread.join(timeout=5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            # A worker that died while it connected is reported by Grain.
            with contextlib.suppress(OSError, EOFError):
                channel = self._listener.accept()
                if self._closed.is_set():
                    channel.close()
                    return
                self._threads.append(_start(self._serve, channel))

    def _serve(self, channel: Any) -> None:
        with contextlib.suppress(OSError, EOFError), channel:
            tasks = self._tasks[channel.recv()]
            while (task := tasks.get()) is not _END:
                channel.send(task)


class _LocalInbox:
    def __init__(self, tasks: queue.SimpleQueue[Any]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, turn: int) -> Any:
        return self._tasks.get_nowait()


class _RemoteInbox:
    """Connects in the worker, at its first turn."""

    def __init__(self, address: Any, workers: int) -> None:
        self._address, self._workers = address, workers
        self._channel: Any = None

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, turn: int) -> Any:
        if self._channel is None:
            authkey = process.current_process().authkey
            self._channel = connection.Client(self._address, authkey=authkey)
            self._channel.send(turn % self._workers)
        return self._channel.recv()


def _start(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
