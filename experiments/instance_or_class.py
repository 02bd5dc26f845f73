"""Is a weight for every example better than a rate for every class? R2Q2 of the reply.

Command   python -m experiments.instance_or_class --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/instance_or_class/page.html
Measures  accuracy, its spread over seeds, how many numbers are learned, how many images the network
          was trained on over all steps, and images a second in the last stage, the median of its
          intervals: of the whole network for Jamal et al. and for BALMS end to end, of cached
          features for the others (to one digit: seconds in all). The methods' stages differ: Jamal
          et al. train the network in both, by batches of 128 beside 200 meta images in the second;
          BALMS end to end by 64 beside 200
Expected  rates of classes are as accurate, steadier over seeds, and learn far fewer numbers
Found     BALMS 57.3 ± 1.7, L2RW 57.2 ± 2.1, Meta-Weight-Net 45.1 ± 1.2, Jamal et al. 57.8 ± 1.7, a
          difference from BALMS of +0.5 ± 0.1 that three seeds do not tell from 0, with half as many
          images again through the network (cpu, seeds 0 to 2). Images a second on CPU cores busy
          with other work, which moved it more than the method: 169 (35 to 198) of Jamal et al., 153
          (34 to 263) of BALMS end to end, which reaches 57.5 ± 1.4
"""

import functools
import json
import math
from collections.abc import Collection

import jax
import numpy as np

from balms_jax.rebalancers import REBALANCERS
from balms_jax.report import Run
from balms_jax.report.comparison import Replicates
from experiments import numbers, whole_runs
from experiments.whole_runs import Question

BY_CLASS = ('balms', 'meta_reweighter', 'softmax_decoupled_meta_sampler', 'balms_end_to_end')
BY_EXAMPLE = ('learning_to_reweight', 'meta_weight_net', 'class_balanced_domain_adaptation')
METHODS = ('softmax', *BY_CLASS, *BY_EXAMPLE)
FEW = ('balms', 'learning_to_reweight')
QUESTION = Question(
    __doc__,
    'instance_or_class',
    'Weights of examples, or rates of classes?',
    METHODS,
    FEW,
    needed=('balms',),
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    trained = whole_runs.train(options, QUESTION)
    runs = [run for run in trained if run.facts['method'] != 'softmax']
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    drawn = figures.accuracy()[:2]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def learned_numbers(run: Run) -> str:
    """How many numbers the meta-gradient goes to: ψ's, or one for each drawn example."""
    meta = list(run.config[name] for name, _ in run.stages)[-1]['meta']
    psi = REBALANCERS[meta['rebalancer']](run.class_counts).psi
    size = sum(leaf.size for leaf in jax.tree.leaves(psi))
    return f'{size:,}' if size else 'one an example, none kept'


def images_per_second(run: Run) -> list[float]:
    """Of the last stage, one an interval; none where it was too short to be timed."""
    lines = [json.loads(line) for line in (run.path / 'throughput.jsonl').read_text().splitlines()]
    return [line['images_per_second'] for line in lines if line['stage'] == run.stages[-1][0]]


def images_trained_on(run: Run) -> int:
    """How many images the whole network was trained on, over all steps of its stages."""
    return sum(
        steps * run.config[name]['batch_size'] for name, steps in run.stages if _whole(run, name)
    )


def trains_all(run: Run) -> bool:
    """Whether the last stage trains the whole network, not a classifier on cached features."""
    return _whole(run, run.stages[-1][0])


def _whole(run: Run, stage: str) -> bool:
    return str(run.config[stage]['trains']) == 'all'


def row(group: Replicates) -> dict[str, str]:
    """A method in numbers."""
    by_class, whole = group.first.facts['method'] in BY_CLASS, trains_all(group.first)
    return {
        'method': group.label,
        'learns for': 'classes' if by_class else 'examples',
        'learned numbers': learned_numbers(group.first),
        'last stage': ('whole network' if whole else 'classifier')
        + f', batches of {group.first.facts["stages"][-1]["batch_size"]}',
        'network trained on': f'{images_trained_on(group.first):,} images',
        **numbers.accuracies(group),
        'images/s (range)': speed_in_words(group) if whole else _one_digit(speed(group)),
    }


def speed(group: Replicates) -> float:
    """Images a second, the median over the intervals of all seeds; NaN without any."""
    rates = speeds(group)
    return float(np.median(rates)) if rates else math.nan


def speeds(group: Replicates) -> list[float]:
    """Images a second of every interval of all seeds."""
    return [rate for run in group.runs for rate in images_per_second(run)]


def speed_in_words(group: Replicates) -> str:
    """Its median and range: other work on the machine moves it."""
    rates = speeds(group) or [math.nan]
    return f'{speed(group):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})'


def _mean_top1(seeds: Collection[int], group: Replicates) -> float:
    """Over the seeds that all have, or over its own where they share none."""
    values = {run.facts['seed']: float(run.final['top1']) for run in group.runs}
    return float(np.mean([v for seed, v in values.items() if seed in seeds or not seeds]))


def _one_digit(value: float) -> str:
    return f'{float(f"{value:.1g}"):,.0f}' if math.isfinite(value) else '–'


def answer(groups: list[Replicates]) -> str:
    """In words: the best of either kind, the difference, their spreads and costs."""
    told, best = [], []
    of_all = set.intersection(*({run.facts['seed'] for run in group.runs} for group in groups))
    for kind, names in (('classes', BY_CLASS), ('examples', BY_EXAMPLE)):
        found = [group for group in groups if group.first.facts['method'] in names]
        if found:
            best.append(max(found, key=functools.partial(_mean_top1, of_all)))
            mean, spread = best[-1].statistics('top1')
            told.append(
                f'Of those that learn for {kind}, {best[-1].label} is first with '
                f'{numbers.number(mean, spread, scale=100, digits=1)} % '
                f'(seeds {numbers.seeds_of(best[-1])}).'
            )
    if len(best) == 2:
        told.append(
            f'Paired by seed, the latter is {numbers.gain(best[1], best[0])} points from the '
            'former.'
        )
        trained = [images_trained_on(group.first) for group in best]
        if trained[0] != trained[1]:
            told.append(
                f'Not like with like: the network of the latter was trained on {trained[1]:,} '
                f'images, that of the former on {trained[0]:,}.'
            )
    whole = [f'{g.label} {speed_in_words(g)}' for g in groups if trains_all(g.first)]
    if len(whole) > 1:
        told.append(
            f'Images a second where the whole network is trained, median and range: '
            f'{"; ".join(whole)}.'
        )
    return ' '.join(told)


if __name__ == '__main__':
    main()
