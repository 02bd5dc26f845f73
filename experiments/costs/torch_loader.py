"""PyTorch's DataLoader, which takes batches when it is told to.

Command   PYTHON experiments/costs/torch_loader.py, where PYTHON has torch, numpy and Pillow

`experiments/stream_throughput.py` runs it by turns with the other loaders. The first line it reads
is the setting as JSON: `decoding` (the file of our decoding),
`paths`, `size`, `batch_size` and `workers`, a list. Each further line, `workers batches`, is
answered by the seconds that those batches took.
"""

import importlib.util
import json
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
import torch
import torch.utils.data

ENDLESS = 2**40  # Draws: an epoch's end would start new workers, and few files end it often.


class Images(torch.utils.data.Dataset):
    """Files decoded and cropped by our code, each time by another crop."""

    def __init__(self, decoding: Any, paths: list[str], size: int) -> None:
        self.decoding, self.paths = decoding, paths
        self.crop = decoding.RandomResizedCrop(size)
        self.rng: np.random.Generator | None = None  # Each worker's own.

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, example: int) -> torch.Tensor:
        """Gives ``[size, size, 3]``, uint8."""
        if self.rng is None:
            self.rng = np.random.default_rng(torch.initial_seed())
        pixels = self.decoding.decode(self.paths[example], self.crop, self.rng)
        return torch.from_numpy(pixels.copy())  # Pillow's are read-only.


def batches(images: Images, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Endless; of as many workers, each two batches ahead, the DataLoader's default."""
    sampler = torch.utils.data.RandomSampler(images, replacement=True, num_samples=ENDLESS)
    return iter(
        torch.utils.data.DataLoader(images, batch_size, sampler=sampler, num_workers=workers)
    )


def main() -> None:
    """Takes batches until its input ends."""
    setting = json.loads(sys.stdin.readline())
    # Decoding asks it for nothing but to stack trees, which is not done here.
    sys.modules.setdefault('jax', types.ModuleType('jax'))
    spec = importlib.util.spec_from_file_location('decoding', setting['decoding'])
    assert spec is not None
    assert spec.loader is not None
    decoding = sys.modules['decoding'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decoding)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # As in its workers: without them it would wait for a second core.
    images = Images(decoding, setting['paths'], setting['size'])
    loaders = {w: batches(images, setting['batch_size'], w) for w in setting['workers']}
    for each in loaders.values():
        next(each)
    print('ready', torch.__version__, PIL.__version__, flush=True)
    for line in sys.stdin:
        workers, count = (int(word) for word in line.split())
        start = time.perf_counter()
        for _ in range(count):
            next(loaders[workers])
        print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    main()
