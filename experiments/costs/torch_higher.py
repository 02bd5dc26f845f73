"""What does the official algorithm cost in PyTorch? A plain step beside a meta step with `higher`.

Command   PYTHON experiments/costs/torch_higher.py [--rounds 5], where PYTHON has the packages
          torch and higher; `pip install torch higher numpy` into an environment of its own
Cost      about a minute on two CPU cores
Ends in   a line of JSON: seconds of every round, and the most memory the process had held
Measures  ResNet-32 end to end, random images, the steps by turns: `plain`, and `higher`, the order
          of the released code: draw by hard Gumbel-softmax over all examples, an inner step by
          higher's differentiable SGD, the meta loss pulled back to ψ, Adam on ψ, and the real step
          computed again
Expected  5 to 6 plain steps on the CPU: 11/3 by counting passes, the rest are second derivatives
          without fused kernels

`experiments/meta_cost.py` runs it by turns with its own steps: with --serve it waits for a step's
name on a line, takes that step, and answers with its seconds.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable

import higher
import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.pad = stride, (planes - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] → [batch, planes, height / stride, width / stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        x = functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)
        )
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """As `balms_jax.models.resnet`, with a linear classifier."""

    def __init__(self, depth: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks, channels = [], width
        for group in range(3):
            for block in range((depth - 2) // 6):
                planes, stride = width * 2**group, 2 if group and not block else 1
                blocks.append(Block(channels, planes, stride))
                channels = planes
        self.blocks, self.classifier = nn.Sequential(*blocks), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width] → logits [batch, classes]."""
        features = self.blocks(functional.relu(self.bn(self.conv(images)))).mean((2, 3))
        return self.classifier(features)


def make_steps(options: argparse.Namespace, device: str) -> dict[str, Callable[[], None]]:
    """The two steps, on one network each."""
    torch.manual_seed(0)
    classes, size = options.classes, options.batch_size
    counts = (500 * 100 ** (-torch.arange(classes) / (classes - 1))).long()
    labels_of_all = torch.repeat_interleave(torch.arange(classes), counts).to(device)
    log_prior = (counts / counts.sum()).log().to(device)
    images, meta_images = (torch.randn(size, 3, 32, 32, device=device) for _ in range(2))
    meta_labels = torch.randint(classes, (size,), device=device)

    def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = CifarResNet(options.depth, classes).to(device).train()
        return network, torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4)

    def balanced(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits + log_prior, labels, reduction='none')

    def real_step(network: nn.Module, optimizer: torch.optim.Optimizer, labels: Tensor) -> None:
        optimizer.zero_grad()
        balanced(network(images), labels).mean().backward()
        optimizer.step()

    plain_network, plain_optimizer = trained()
    network, optimizer = trained()
    psi = torch.zeros(classes, device=device, requires_grad=True)
    psi_optimizer = torch.optim.Adam([psi], 0.01)

    def plain() -> None:
        real_step(plain_network, plain_optimizer, meta_labels)

    def meta() -> None:
        log_rates = functional.logsigmoid(psi)[labels_of_all].expand(size, -1)
        one_hot = functional.gumbel_softmax(log_rates, hard=True)
        examples = one_hot.argmax(1)
        labels = labels_of_all[examples]
        z = one_hot.gather(1, examples[:, None])[:, 0]
        optimizer.zero_grad()
        psi_optimizer.zero_grad()
        with higher.innerloop_ctx(network, optimizer) as (moving, inner_optimizer):
            inner_optimizer.step((z * balanced(moving(images), labels)).mean())
            functional.cross_entropy(moving(meta_images), meta_labels).backward()
        psi_optimizer.step()
        real_step(network, optimizer, labels)

    return {'plain': plain, 'higher': meta}


def seconds(step: Callable[[], None], device: str) -> float:
    """How long a step takes."""
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(device: str) -> int:
    """The most memory held so far: by the process, or on the accelerator."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Runs the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--depth', type=int, default=32)
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--classes', type=int, default=100)
    parser.add_argument('--serve', action='store_true', help='take the steps that stdin names')
    options = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    steps = make_steps(options, device)
    peaks = {}
    for name, step in steps.items():  # The first call is slower.
        step()
        peaks[name] = peak_bytes(device)
    facts = {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'peak_bytes': peaks}
    if options.serve:
        print(json.dumps(facts), flush=True)
        for line in sys.stdin:
            print(seconds(steps[line.strip()], device), flush=True)
        return
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            rounds[name].append(seconds(step, device))
    print(json.dumps(facts | {'seconds': rounds}))


if __name__ == '__main__':
    main()
