"""Where does every method stand? Tables 2 and 5 of the paper, each row measured here.

Command   python -m experiments.ablation --data_dir data [--scale cpu]
Scales    smoke  four rows on the embedded digits, one seed: no download
          cpu    ResNet-8, 1,200 steps of 128, CIFAR-10-LT, imbalance factor 100, three seeds
          paper  the paper's recipe, both CIFARs, imbalance factors 200, 100 and 10, three seeds
Cost      cpu: about an hour on two CPU cores, and it goes on where it was stopped; paper: a GPU
Data      python -m balms_jax.data.sources cifar10 --data_dir data
Ends in   FOLDER/SCALE: a run of every row and seed; --output: page.html, rows.json
Measures  top-1 accuracy at the last step, on the balanced test set, over seeds
Expected  Balanced Softmax above softmax by several points, most of it in the tail; decoupled rows
          above end-to-end softmax; BALMS first, as in the paper
"""

import argparse
import functools
from pathlib import Path

from ml_collections import ConfigDict

from balms_jax.report import read_run
from balms_jax.training.methods import METHODS
from configs import cifar_lt, digits_lt
from experiments import ablation_page, published
from experiments.comparison import console, exit_on_failure, train_all

RESULTS = Path(__file__).parent / 'results' / 'ablation'
RECIPES = {'cpu': 'short', 'paper': 'paper'}
FEW = ('softmax', 'balanced_softmax', 'softmax_decoupled_cbs', 'balms')


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--scale', choices=('smoke', 'cpu', 'paper'), default='cpu')
    parser.add_argument('--datasets', nargs='+', choices=published.DATASETS)
    parser.add_argument('--imbalance_factors', nargs='+', type=float)
    parser.add_argument('--methods', nargs='+', choices=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=int)
    parser.add_argument('--data_dir', default='')
    parser.add_argument('--folder', type=Path, default=Path('runs/ablation'), help='of the runs')
    parser.add_argument('--output', type=Path, default=RESULTS, help='of the page')
    parser.add_argument('--page_only', action='store_true', help='of the runs that are finished')
    options = parser.parse_args()
    smoke, paper = options.scale == 'smoke', options.scale == 'paper'
    datasets = ['digits'] if smoke else options.datasets
    datasets = datasets or (published.DATASETS if paper else ['cifar10'])
    factors = options.imbalance_factors or (published.IMBALANCE_FACTORS if paper else [100])
    methods = options.methods or (FEW if smoke else published.METHODS)
    seeds = options.seeds or ([0] if smoke else [0, 1, 2])
    runs = []
    with exit_on_failure():
        for dataset in datasets:
            for factor in [40] if smoke else factors:
                folder = options.folder / options.scale / f'{dataset}_{factor:g}'
                if options.page_only:
                    wanted = [folder / f'{m}-{seed}' for m in methods for seed in seeds]
                    found = [run for run in wanted if (run / 'evaluation.json').exists()]
                else:
                    config = functools.partial(
                        _config, options.scale, dataset, factor, options.data_dir
                    )
                    found = train_all(config, methods, seeds, folder)
                runs += [read_run(run) for run in found]
    page = ablation_page.write(runs, options.output, options.scale)
    console.print(f'page: {page}', markup=False)


def _config(
    scale: str, dataset: str, imbalance_factor: float, data_dir: str, method: str
) -> ConfigDict:
    if scale == 'smoke':
        values = digits_lt.get_config(f'method={method},imbalance_factor={imbalance_factor}')
        for stage in (values.stage_1, values.stage_2):
            stage.steps = min(stage.steps, 60)
        return values
    values = cifar_lt.get_config(
        f'dataset={dataset},imbalance_factor={imbalance_factor},method={method},'
        f'recipe={RECIPES[scale]}'
    )
    values.data.data_dir = data_dir
    return values


if __name__ == '__main__':
    main()
