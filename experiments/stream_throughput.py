"""How many images a second does a core decode: our stream, plain Grain, PyTorch's DataLoader?

Command   python -m experiments.stream_throughput --list FILE --root FOLDER --photographs FOLDER
          [--torch_python PYTHON] [--workers 0 1 2] [--scale smoke]
Cost      half an hour on two busy CPU cores; --scale smoke two minutes. Linux, for /proc
Ends in   experiments/results/stream_throughput/: rounds.json and table.md
Files     small: those of --list, crops of 64; photographs: of --photographs, saved for the
          measurement as JPEGs of 500 × 375, crops of 224; resized: the same with a shorter side of
          256, as one would prepare them once. All stay in the page cache: disks are not measured.
          Of --list or --photographs alone, what was kept of the others stays
Measures  decode, random resized crop, batch, in the consumer's process; by turns in one run, all
          loaders open, each idle while another is measured. Images a second by the clock, and by
          the processor time that the consumer and its workers took, which other work on the
          machine disturbs less. Medians; in brackets the quartiles over the rounds; the last
          columns are the stream's rate over the loader's in the same round
Expected  at least the DataLoader's rate with as many workers: drawing a batch costs little beside
          decoding it, and all three decode and crop by the same code
Found     two cores busy with other work, Pillow 13.0, 9 rounds. Two workers, by the clock, over
          PyTorch's DataLoader in the same round: 1.16 (0.99 to 1.24) for small files, 1.28 (1.23 to
          1.52) for photographs, 1.17 (0.78 to 1.78) resized; one worker: 0.85, 1.10, 1.00. By
          processor time: 0.88 to 0.92 for small files, where a batch's turn costs what decoding
          some of them does, 0.94 to 1.11 for photographs. Over plain Grain 1.03 to 1.16 throughout
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import PIL
import rich.console
from PIL import Image, ImageOps

from balms_jax.data.decoding import CentreCrop, RandomResizedCrop, decode
from balms_jax.data.image_files import ImageFiles
from balms_jax.data.list_files import EXTENSIONS, ImageList, read_folders, read_list_file
from balms_jax.data.stream_draws import shuffled
from balms_jax.data.streamed import Stream
from balms_jax.report.comparison import markdown_table
from experiments import kept

STREAM, GRAIN, TORCH = 'stream', 'plain Grain', 'PyTorch DataLoader'
KINDS = ('small', 'photographs', 'resized')
NONE: dict[str, Any] = {'rows': []}
PHOTOGRAPH, SHORTER_SIDE, QUALITY = (500, 375), 256, 95
SETTLED_SHARE = 0.05  # of a core: less is what a machine's idle processes take
SETTLING_SECONDS, MOST_SETTLINGS = 0.5, 40
WARM_UP_BATCHES = 7  # a worker

Run = Callable[[int], float]  # Batches → seconds.


class Kind(NamedTuple):
    """Files to decode."""

    name: str
    images: ImageList
    size: int  # of the crop, in pixels
    batches: int  # of one measurement


class Measured(NamedTuple):
    """One loader in one round."""

    seconds: float
    cpu_seconds: float  # of this process and those below it


class GrainDecode:
    """The same decoding and cropping as one Grain transformation of example numbers."""

    def __init__(self, paths: tuple[str, ...], size: int) -> None:
        self.paths, self.crop = paths, RandomResizedCrop(size)

    def __call__(self, example: int, rng: np.random.Generator) -> np.ndarray:
        """Gives ``[size, size, 3]``, uint8."""
        return decode(self.paths[example], self.crop, rng)


def timed(batches: Iterator[Any]) -> Run:
    """Takes so many batches and says how long it took; the first comes before any clock runs."""
    next(batches)

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - start

    return run


def our_stream(kind: Kind, batch_size: int, workers: int) -> Stream:
    """The stream as a training run has it, with the prefetch that is its default."""
    size = kind.size
    files = ImageFiles(kind.images, CentreCrop(size, resize=size), RandomResizedCrop(size))
    return Stream(files, shuffled(0, batch_size, len(files)), workers=workers)


def plain_grain(kind: Kind, batch_size: int, workers: int) -> Iterator[Any]:
    """Grain's own shuffle, read and batch, with as many workers, each two batches ahead."""
    paths = kind.images.paths
    data = grain.MapDataset.range(len(paths)).shuffle(seed=0).repeat()
    data = data.random_map(GrainDecode(paths, kind.size), seed=0).batch(batch_size)
    elements = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        elements = elements.mp_prefetch(grain.MultiprocessingOptions(workers, 2))
    return iter(elements)


@contextlib.contextmanager
def torch_loaders(
    kind: Kind, batch_size: int, workers: Sequence[int], python: str | None
) -> Iterator[dict[int, Run]]:
    """DataLoaders that wait for orders; none, and a line that says so, where torch is absent."""
    console = rich.console.Console()
    if python is None:
        console.print('PyTorch: skipped, for no --torch_python was given')
        yield {}
        return
    program = Path(__file__).parent / 'costs' / 'torch_loader.py'
    process = subprocess.Popen(
        [python, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told, heard = process.stdin, process.stdout

    def ordered(count: int, loader: int) -> float:
        told.write(f'{loader} {count}\n')
        told.flush()
        return float(heard.readline())

    setting = {
        'paths': kind.images.paths,
        'size': kind.size,
        'batch_size': batch_size,
        'workers': list(workers),
        'decoding': str(Path(sys.modules[RandomResizedCrop.__module__].__file__ or '')),
    }
    try:
        with contextlib.suppress(BrokenPipeError):
            told.write(json.dumps(setting) + '\n')
            told.flush()
        if not (line := heard.readline()).startswith('ready'):
            console.print(f'PyTorch: skipped, for {python} cannot run a DataLoader')
            yield {}
            return
        console.print(f'PyTorch {line.split()[1]} with Pillow {line.split()[2]}')
        yield {w: lambda count, loader=w: ordered(count, loader) for w in workers}  # type: ignore[misc]
    finally:
        with contextlib.suppress(BrokenPipeError):
            told.close()  # It ends, and its workers with it.
        process.wait(timeout=30)


def cpu_seconds() -> float:
    """Processor time that this process and all below it have taken."""
    times: dict[int, float] = {}
    below: dict[int, list[int]] = {}
    for folder in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            fields = (folder / 'stat').read_text().rpartition(')')[2].split()
            pid = int(folder.name)
            below.setdefault(int(fields[1]), []).append(pid)
            times[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    found, waiting = 0.0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found += times.get(pid, 0.0)
        waiting += below.get(pid, [])
    return found


def settle() -> None:
    """Waits until all workers have filled their buffers, for they would share the cores."""
    before = cpu_seconds()
    for _ in range(MOST_SETTLINGS):
        time.sleep(SETTLING_SECONDS)
        now = cpu_seconds()
        if now - before < SETTLED_SHARE * SETTLING_SECONDS:
            return
        before = now


def measure(
    runs: dict[tuple[str, int], Run], batches: int, rounds: int
) -> dict[tuple[str, int], list[Measured]]:
    """Every round of every (loader, workers); by turns in either order, for machines drift."""
    found: dict[tuple[str, int], list[Measured]] = {key: [] for key in runs}
    for number in range(rounds):
        for key in list(runs) if number % 2 else list(runs)[::-1]:
            settle()
            # What its workers prefetched meanwhile must not count: Grain's hold six batches each.
            runs[key](WARM_UP_BATCHES * key[1] + 1)
            before = cpu_seconds()
            seconds = runs[key](batches)
            found[key].append(Measured(seconds, cpu_seconds() - before))
    return found


def rows(
    found: dict[tuple[str, int], list[Measured]], kind: Kind, batch_size: int
) -> list[dict[str, Any]]:
    """Rates and ratios of every loader."""
    count, table = kind.batches * batch_size, []
    for (loader, workers), rounds in found.items():
        ours = found[STREAM, workers]
        table.append(
            {
                'files': kind.name,
                'workers': workers,
                'loader': loader,
                'images_per_second': spread([count / r.seconds for r in rounds]),
                'per_core': spread([count / r.seconds / max(1, workers) for r in rounds]),
                'per_cpu_second': spread([count / r.cpu_seconds for r in rounds]),
                'stream_over_it': spread(
                    [r.seconds / s.seconds for r, s in zip(rounds, ours, strict=True)]
                ),
                'stream_over_it_by_cpu': spread(
                    [r.cpu_seconds / s.cpu_seconds for r, s in zip(rounds, ours, strict=True)]
                ),
                'rounds': [[round(value, 3) for value in r] for r in rounds],
            }
        )
    return sorted(table, key=lambda row: row['workers'])


def spread(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        [1.5, 2.0, 2.5]
    """
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method='inclusive')


def photographs(folder: Path, into: Path, *, resized: bool) -> ImageList:
    """Saves photographs as JPEGs of one size.

    Args:
        folder: of images in any format and depth.
        into: where they are saved.
        resized: whether their shorter side is that of prepared files, or as published sets have it.
    """
    factor = SHORTER_SIDE / min(PHOTOGRAPH) if resized else 1.0
    size = (round(PHOTOGRAPH[0] * factor), round(PHOTOGRAPH[1] * factor))
    (into / 'all').mkdir()
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise SystemExit(f'--photographs: {folder} holds no image')
    for number, path in enumerate(found):
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert('RGB'), size, Image.Resampling.BICUBIC)
            fitted.save(into / 'all' / f'{number}.jpg', quality=QUALITY)
    return read_folders(into)


def described(kind: Kind) -> str:
    """How many and how large the files are."""
    paths = kind.images.paths[:: max(1, len(kind.images.paths) // 500)]
    kilobytes = statistics.mean(os.path.getsize(path) for path in paths) / 1000
    with Image.open(paths[0]) as image:
        width, height = image.size
    return (
        f'{kind.name}: {len(kind.images.paths)} files, the first of {width} × {height}, '
        f'{kilobytes:.0f} kB in the mean, crops of {kind.size}'
    )


def measured_kind(kind: Kind, flags: argparse.Namespace, rounds: int) -> list[dict[str, Any]]:
    """Opens every loader of the files, and measures them by turns."""
    with contextlib.ExitStack() as opened:
        torch = opened.enter_context(
            torch_loaders(kind, flags.batch_size, flags.workers, flags.torch_python)
        )
        runs: dict[tuple[str, int], Run] = {}
        for workers in flags.workers:
            stream = opened.enter_context(our_stream(kind, flags.batch_size, workers))
            runs[STREAM, workers] = timed(stream)
            runs[GRAIN, workers] = timed(plain_grain(kind, flags.batch_size, workers))
            if workers in torch:
                runs[TORCH, workers] = torch[workers]
        return rows(measure(runs, kind.batches, rounds), kind, flags.batch_size)


def told(row: dict[str, Any]) -> dict[str, str]:
    """A row as text."""

    def rate(name: str) -> str:
        low, middle, high = row[name]
        return f'{middle:.0f} ({low:.0f}–{high:.0f})'

    def ratio(name: str) -> str:
        low, middle, high = row[name]
        return f'{middle:.2f} ({low:.2f}–{high:.2f})' if row['loader'] != STREAM else '1'

    return {
        'files': row['files'],
        'workers': str(row['workers']),
        'loader': row['loader'],
        'images / s': rate('images_per_second'),
        'images / s / core': rate('per_core'),
        'images / CPU s': rate('per_cpu_second'),
        'stream over it': ratio('stream_over_it'),
        'by CPU time': ratio('stream_over_it_by_cpu'),
    }


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--list', help='lines of "relative/path label", of small images')
    parser.add_argument('--root', help='the folder that the paths are relative to')
    parser.add_argument('--photographs', type=Path, help='a folder of images of about 500 × 375')
    parser.add_argument('--torch_python', help='an interpreter with torch, numpy and Pillow')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--batch_size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=0, help='0: 9, or 2 of the smoke scale')
    parser.add_argument('--scale', choices=('cpu', 'smoke'), default='cpu')
    parser.add_argument('--output', type=Path, help=kept.HELP)
    flags = parser.parse_args()
    if not (flags.list and flags.root) and flags.photographs is None:
        parser.error('wanted --list and --root, or --photographs, or all three')
    jax.config.update('jax_platforms', 'cpu')  # For the draws, which are made on the host.
    smoke = flags.scale == 'smoke'
    rounds, console = flags.rounds or (2 if smoke else 9), rich.console.Console()
    with tempfile.TemporaryDirectory() as temporary:
        kinds = []
        if flags.list and flags.root:
            images = read_list_file(flags.list, flags.root)
            kinds.append(Kind(KINDS[0], images, 64, 8 if smoke else 64))
        if flags.photographs is not None:
            for name in KINDS[1:]:
                into = Path(temporary) / name
                into.mkdir()
                images = photographs(flags.photographs, into, resized=name == 'resized')
                kinds.append(Kind(name, images, 224, 4 if smoke else 16))
        output = kept.page_folder('stream_throughput', flags.scale, flags.output)
        found = earlier(output / 'rounds.json')
        for kind in kinds:
            note = f'{described(kind)}; {rounds} rounds, batches of {flags.batch_size}'
            console.print(note)
            measured = measured_kind(kind, flags, rounds)
            found[kind.name] = {'note': note, 'rows': measured}
            written(found, output)
            console.print((output / 'table.md').read_text(), markup=False, soft_wrap=True)
    console.print(f'table: {output / "table.md"}')


def earlier(file: Path) -> dict[str, dict[str, Any]]:
    """What was measured before, by kind; a kind that is measured again takes its place."""
    return json.loads(file.read_text()) if file.exists() else {}


def written(found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Writes rounds.json and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'rounds.json').write_text(json.dumps(found) + '\n')
    table = markdown_table([told(row) for name in KINDS for row in found.get(name, NONE)['rows']])
    notes = [found[name]['note'] for name in KINDS if name in found]
    machine = (
        f'Python {platform.python_version()}, Pillow {PIL.__version__}, {os.cpu_count()} cores'
    )
    (folder / 'table.md').write_text('\n\n'.join([table.rstrip('\n'), *notes, machine]) + '\n')


if __name__ == '__main__':
    main()
