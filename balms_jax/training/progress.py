"""How far a run is: a bar on a terminal, plain lines elsewhere, or nothing."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.progress
from rich.console import Console

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows steps, images per second and time left."""

    def __init__(self, *, quiet: bool = False, title: str = '') -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.title = title

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, markup=False)

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int, start: int, batch_size: int
    ) -> Iterator[Callable[[int, float], None]]:
        """Gives a function that is told each step reached, and how long was spent on no step."""
        label = f'{self.title} {name}'.strip()
        if self.console.is_terminal:
            columns = (
                rich.progress.TextColumn('{task.description}'),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn('{task.fields[rate]}'),
                rich.progress.TimeRemainingColumn(),
            )
            with rich.progress.Progress(*columns, console=self.console) as bar:
                task = bar.add_task(label, total=total, completed=start, rate='')
                rate = _Rate(batch_size)

                def advance(step: int, idle: float) -> None:
                    rate.note(step, idle)
                    bar.update(task, completed=step, rate=rate.text(step))

                yield advance
            return
        rate, last = _Rate(batch_size), time.monotonic()

        def show(step: int, idle: float) -> None:
            nonlocal last
            rate.note(step, idle)
            if step == total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.say(
                    f'{label}: step {step}/{total}, {rate.text(step)}, {rate.left(step, total)}'
                )

        yield show


class _Rate:
    """Since the first step was done, which is when everything had been compiled."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.first: tuple[int, float] | None = None

    def note(self, step: int, idle: float) -> None:
        if self.first is None:
            self.first = (step, time.monotonic())
        else:
            self.first = (self.first[0], self.first[1] + idle)

    def per_second(self, step: int) -> float:
        if self.first is None or step == self.first[0]:
            return 0.0
        return (step - self.first[0]) / max(time.monotonic() - self.first[1], 1e-9)

    def text(self, step: int) -> str:
        return f'{self.per_second(step) * self.batch_size:.0f} images/s'

    def left(self, step: int, total: int) -> str:
        rate = self.per_second(step)
        return f'{(total - step) / rate:.0f} s left' if rate else 'time left unknown'
