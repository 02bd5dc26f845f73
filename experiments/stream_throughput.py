"""How many images a second does a core decode: our stream, plain Grain, PyTorch's DataLoader?

Command   python -m experiments.stream_throughput --list FILE --root FOLDER [--workers 1]
          [--torch_python PYTHON] [--output FILE.json]
Cost      two minutes on two CPU cores, for batches of 64 × 64 JPEGs
Expected  at least 0.95 times plain Grain and at least the DataLoader's rate: drawing a batch costs
          little beside decoding it, and all three decode and crop by the same code
Found     Tiny-ImageNet-LT, one worker, 10 repetitions of 10 batches of 128 on two CPU cores busy
          with other work: 1701 images a second and core, 1627 for plain Grain and 1727 for the
          DataLoader (medians; single repetitions range over a factor of two). The medians of the
          paired ratios are 1.12 and 0.96: no difference that the noise would let one see
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import PIL
import rich.console
import rich.table

from balms_jax.data.decoding import CentreCrop, RandomResizedCrop, decode
from balms_jax.data.image_files import ImageFiles
from balms_jax.data.list_files import ImageList, read_list_file
from balms_jax.data.stream_draws import shuffled
from balms_jax.data.streamed import Stream

SETTLE_SECONDS = 2.0
WARM_UP_BATCHES = 8

Run = Callable[[int], float]  # Batches → seconds.

# Its own process and interpreter; it loads our decoding, which needs numpy and Pillow alone.
TORCH_PROGRAM = """
import importlib.util, json, sys, time
setting = json.loads(sys.stdin.readline())
try:
    import PIL
except ImportError:
    sys.path.append(setting['pillow'])
import numpy as np
import torch
import torch.utils.data
spec = importlib.util.spec_from_file_location('decoding', setting['decoding'])
decoding = sys.modules['decoding'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoding)

class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.paths, self.crop = setting['paths'], decoding.RandomResizedCrop(setting['size'])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        pixels = decoding.decode(self.paths[i], self.crop, np.random.default_rng([0, 0, i, 0]))
        return torch.from_numpy(pixels.copy())  # Pillow's are read-only.

torch.manual_seed(0)
loader = torch.utils.data.DataLoader(
    Images(), setting['batch_size'], shuffle=True, num_workers=setting['workers'], drop_last=True,
    **({'prefetch_factor': 2} if setting['workers'] else {}),
)
def endless():
    while True:
        yield from loader
batches = endless()
next(batches)
print('ready', torch.__version__, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        next(batches)
    print(time.perf_counter() - start, flush=True)
"""


class GrainDecode:
    """The same decoding and cropping as one Grain transformation of example numbers."""

    def __init__(self, paths: tuple[str, ...], size: int) -> None:
        self.paths, self.crop = paths, RandomResizedCrop(size)

    def __call__(self, example: int) -> np.ndarray:
        """Gives ``[size, size, 3]``, uint8."""
        rng = np.random.default_rng([0, 0, int(example), 0])
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


def plain_grain(images: ImageList, flags: argparse.Namespace) -> Iterator[Any]:
    """Grain's own shuffle, read and batch, with as many workers."""
    data = grain.MapDataset.range(len(images.paths)).shuffle(seed=0).repeat()
    data = data.map(GrainDecode(images.paths, flags.size)).batch(flags.batch_size)
    elements = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if flags.workers:
        elements = elements.mp_prefetch(grain.MultiprocessingOptions(flags.workers, 2))
    return iter(elements)


def torch_process(images: ImageList, flags: argparse.Namespace) -> subprocess.Popen | None:
    """A DataLoader that waits for orders; None, and a line that says so, where torch is absent."""
    console = rich.console.Console()
    if flags.torch_python is None:
        console.print('PyTorch: skipped, for no --torch_python was given')
        return None
    process = subprocess.Popen(
        [flags.torch_python, '-c', TORCH_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    setting = {
        'paths': images.paths,
        'size': flags.size,
        'batch_size': flags.batch_size,
        'workers': flags.workers,
        'decoding': str(Path(sys.modules[RandomResizedCrop.__module__].__file__ or '')),
        'pillow': str(Path(PIL.__file__).parents[1]),
    }
    process.stdin.write(json.dumps(setting) + '\n')
    process.stdin.flush()
    if not (line := process.stdout.readline()).startswith('ready'):
        console.print(f'PyTorch: skipped, for {flags.torch_python} cannot run a DataLoader')
        return None
    console.print(f'PyTorch {line.split()[1]}')
    return process


def ordered(process: subprocess.Popen) -> Run:
    """Has the other process take batches."""

    def run(count: int) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f'{count}\n')
        process.stdin.flush()
        return float(process.stdout.readline())

    return run


def measure(runs: dict[str, Run], batches: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of every repetition, by name; by turns in either order, for machines drift."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions):
        for name in list(runs) if repetition % 2 else list(runs)[::-1]:
            # The others' workers fill their buffers first, for they would share the cores; and
            # what this one's worker prefetched meanwhile must not count.
            time.sleep(SETTLE_SECONDS)
            runs[name](WARM_UP_BATCHES)
            times[name].append(runs[name](batches))
    return times


def results(times: dict[str, list[float]], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a loader: images a second and core, and our stream's rate over it."""
    count, cores = flags.batches * flags.batch_size, max(1, flags.workers)
    rows = []
    for name, seconds in times.items():
        ratios = [theirs / ours for ours, theirs in zip(times['stream'], seconds, strict=True)]
        rows.append(
            {
                'loader': name,
                'images_per_second_per_core': count / statistics.median(seconds) / cores,
                'best': count / min(seconds) / cores,
                'stream_over_it': statistics.median(ratios),
                'seconds': seconds,
            }
        )
    return rows


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--list', required=True, help='lines of "relative/path label"')
    parser.add_argument('--root', required=True, help='the folder that the paths are relative to')
    parser.add_argument('--torch_python', help='an interpreter with torch and numpy')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batches', type=int, default=15, help='of one repetition')
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--output', help='where to write the JSON')
    flags = parser.parse_args()
    images = read_list_file(flags.list, flags.root)
    size, count = flags.size, len(images.paths)
    files = ImageFiles(images, CentreCrop(size, resize=size), RandomResizedCrop(size))
    draws = shuffled(0, flags.batch_size, count)
    torch = torch_process(images, flags)
    try:
        with Stream(files, draws, workers=flags.workers) as stream:
            runs = {'stream': timed(stream), 'plain Grain': timed(plain_grain(images, flags))}
            if torch is not None:
                runs['PyTorch DataLoader'] = ordered(torch)
            rows = results(measure(runs, flags.batches, flags.repetitions), flags)
    finally:
        if torch is not None:
            torch.kill()
    table = rich.table.Table('loader', 'images / s / core', 'best', 'stream over it')
    for row in rows:
        table.add_row(
            row['loader'],
            f'{row["images_per_second_per_core"]:.0f}',
            f'{row["best"]:.0f}',
            f'{row["stream_over_it"]:.3f}',
        )
    console = rich.console.Console()
    console.print(table)
    console.print(
        f'{flags.workers} workers; medians of {flags.repetitions} interleaved repetitions of '
        f'{flags.batches} batches of {flags.batch_size} at {flags.size} pixels'
    )
    if flags.output:
        Path(flags.output).write_text(json.dumps({'flags': vars(flags), 'rows': rows}, indent=1))


if __name__ == '__main__':
    main()
