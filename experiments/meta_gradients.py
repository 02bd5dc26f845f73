"""How good is each meta-gradient? Precision of the modes, bias and noise of the estimators.

Command   python -m experiments.meta_gradients --data_dir data [--backbone RUN] [--scale cpu]
Scales    smoke  a linear head on the digits' pixels, no download: five minutes
          cpu    ResNet-32, and features of a ResNet-8 after 600 steps on CIFAR-10-LT: hours
Parts     agreement   every mode in every precision against one of them in float64
          v_curve     finite differences against their step
          exact       moments of the estimators of the sampling gradient, by enumeration
          estimators  the same on features of real images, by drawing
          horizon     K steps against the implicit limit
          training    a head trained with each estimator, horizon, staleness, meta batch
Data      python -m balms_jax.data.sources cifar10 --data_dir data; cifar100 if it is to take part
Ends in   experiments/results/meta_gradients/: one file of numbers a part, and page.html
Measures  relative errors and cosines of the gradient of ψ; mean, spread and direction of its
          estimates against the gradient of the expected update; accuracy at the last step
Expected  exact modes agree to rounding, differences to the square or cube root of it at best; the
          official estimator is biased, those of the score function are not to first order;
          accuracy hardly tells any of this apart
Found     modes agree to 3e-15 in float64, ResNet-32 included; a difference at its default step
          errs in float32 by 2e-5 on a linear head, 7e-3 on a ResNet-8. The official estimator gives
          14 % of the gradient, turned by 9.4 degrees; systematic_examples 102 %, by 1.6 degrees,
          half the noise. Accuracy tells neither these nor 24 steps of staleness apart; K > 1 and
          rare meta steps hurt with softmax, as psi then takes fewer steps. Features of a ResNet-8
          (600 steps, 32.8 % top-1).
          With frozen statistics ResNet-32 was measured in bfloat16 by reverse alone
"""

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from balms_jax.data import long_tail, sources
from experiments import kept
from experiments.laboratory import (
    agreement,
    features,
    horizon,
    networks,
    page,
    sampling_gradients,
    training,
)
from experiments.laboratory.agreement import Programs
from experiments.laboratory.features import Pool, Tail
from experiments.laboratory.head import Settings
from experiments.laboratory.ledger import Ledger
from experiments.laboratory.networks import Subject

SMOKE = sampling_gradients.Sizes(
    batch_sizes=(32,),
    imbalance_factors=(10.0,),
    classes=(10,),
    temperatures=(1.0,),
    base=(32, 10.0, 10),
    draws=200,
    noise=1e7,
    warm_steps=50,
    training_steps=200,
    meta_batch=50,
    points=('learned',),
)


class Laboratory:
    """The parts at a scale, each with what it needs made when it is needed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, arguments.folder
        self.smoke = arguments.scale == 'smoke'
        self.sizes = SMOKE if self.smoke else sampling_gradients.Sizes()
        self.warm_steps = 4 if self.smoke else 12
        self._pools: dict[str, Pool] = {}

    def pools(self) -> dict[str, Pool]:
        """The features: 'main', and 'cifar100' where its data is."""
        if self._pools:
            return self._pools
        if self.smoke:
            self._pools = {'main': features.digits_pool()}
            return self._pools
        data_dir, run = self.arguments.data_dir, self.arguments.backbone
        cached = self.folder / 'features_cifar10.npz'
        if run is None and not cached.exists():
            run = features.train_backbone(self.folder / 'backbone', data_dir, steps=600)
        self._pools = {'main': features.cifar_pool('cifar10', run, data_dir, self.folder)}
        try:
            self._pools['cifar100'] = features.cifar_pool('cifar100', run, data_dir, self.folder)
        except sources.DataNotFoundError as error:
            features.CONSOLE.print(f'without CIFAR-100: {error}', markup=False)
        return self._pools

    def tail(self) -> Tail:
        """The long tail that the head is trained on."""
        return features.cut(self.pools()['main'], self.sizes.base[1])

    def ledger(self, part: str, **settings: Any) -> Ledger:
        """The rows of a part."""
        return Ledger(self.folder / f'{part}.json', {'scale': self.arguments.scale, **settings})

    def backbone(self) -> str:
        """What made the features, in words."""
        return self.pools()['main'].backbone

    def subjects(self, smooth: bool) -> list[Callable[[], Subject]]:
        """The networks of parts A and B, made one at a time."""
        tail, name = self.tail(), self.arguments.network
        heads: list[Callable[[], Subject]] = [lambda: networks.linear_head(tail)]
        if smooth:
            heads.append(lambda: networks.tanh_network(tail))
        if self.smoke:
            return heads[-1:]

        def residual(frozen: bool) -> Callable[[], Subject]:
            return lambda: networks.residual_network(name, self.images(), frozen=frozen)

        deep = [residual(False)] if smooth else [residual(False), residual(True)]
        return [*heads, *deep]

    def images(self) -> Tail:
        """Normalised images with a long tail."""
        source = sources.load('cifar10', self.arguments.data_dir)
        counts = long_tail.exponential_profile(500, 10, 100)
        places = long_tail.long_tailed_subset(source.train_labels, counts, seed=0)
        pixels = source.train_images[places] / 255
        return Tail(((pixels - source.mean) / source.std).astype(np.float32), counts)

    def agreement(self) -> None:
        """Part A."""
        ledger = self.ledger('agreement', network=self.arguments.network)
        for make in self.subjects(smooth=False):
            with jax.enable_x64(True):
                agreement.measure_agreement(ledger, Programs(make()), self.warm_steps)

    def v_curve(self) -> None:
        """Part B."""
        ledger = self.ledger('v_curve', network=self.arguments.network)
        steps = np.logspace(-8, 0, 9 if self.smoke else 25)
        for make in self.subjects(smooth=True):
            with jax.enable_x64(True):
                agreement.measure_differences(ledger, Programs(make()), self.warm_steps, steps)

    def exact(self) -> None:
        """Part C, by enumeration."""
        sampling_gradients.enumerate_problems(self.ledger('exact'), few=self.smoke)

    def estimators(self) -> None:
        """Part C, by drawing."""
        ledger = self.ledger('estimators', backbone=self.backbone(), **self.sizes._asdict())
        sampling_gradients.measure(ledger, self.pools(), self.sizes)

    def horizon(self) -> None:
        """Part D, against the implicit limit."""
        sizes = self.sizes
        how = {
            'warm_steps': sizes.warm_steps,
            'steps': sizes.training_steps,
            'draws': 40 if self.smoke else 400,
            'meta_size': sizes.meta_batch,
        }
        horizons = (1, 4) if self.smoke else horizon.HORIZONS
        ledger = self.ledger('horizon', backbone=self.backbone(), **how)
        horizon.measure(ledger, self.tail(), horizons, **how)

    def training(self) -> None:
        """Part D, the trainings."""
        base = Settings(
            steps=self.sizes.training_steps,
            meta_batch=self.sizes.meta_batch,
            batch_size=self.sizes.base[0],
        )
        ledger = self.ledger(
            'training', backbone=self.backbone(), seeds=3, base=list(base), counts=self.counts()
        )
        pool, tail = self.pools()['main'], self.tail()
        training.measure(ledger, pool, tail, base, seeds=3, few=self.smoke)

    def counts(self) -> list[int]:
        """Training images by class."""
        return [int(n) for n in self.tail().counts]


PARTS = ('agreement', 'v_curve', 'exact', 'estimators', 'horizon', 'training')


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--scale', choices=('smoke', 'cpu'), default='cpu')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--data_dir', default='')
    parser.add_argument(
        '--backbone', type=Path, help='a run whose features are taken; by default one is trained'
    )
    parser.add_argument('--network', default='resnet32', help='of agreement and v_curve')
    parser.add_argument(
        '--folder', type=Path, default=Path('runs/meta_gradients'), help='what is done stays here'
    )
    parser.add_argument('--output', type=Path, help=kept.HELP)
    parser.add_argument('--page_only', action='store_true', help='of what the folder holds')
    arguments = parser.parse_args()
    arguments.folder = arguments.folder / arguments.scale
    arguments.folder.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(arguments)
    try:
        for part in () if arguments.page_only else arguments.parts:
            getattr(laboratory, part)()
            page.note_run(arguments.folder, part, _machine())
    except (sources.DataNotFoundError, ValueError) as error:
        raise SystemExit(f'meta_gradients: {error}') from None
    if not any(arguments.folder.glob('*.json')):
        raise SystemExit(
            f'meta_gradients: no part in {arguments.folder}; measure it without --page_only'
        )
    output = kept.page_folder('meta_gradients', arguments.scale, arguments.output)
    written = page.write(arguments.folder, output, PARTS)
    features.CONSOLE.print(f'page: {written}')


def _machine() -> dict[str, str]:
    return {
        'device': f'{jax.devices()[0].device_kind}, {os.cpu_count()} cores',
        'jax': jax.__version__,
        'python': platform.python_version(),
    }


if __name__ == '__main__':
    main()
