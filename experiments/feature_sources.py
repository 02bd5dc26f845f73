"""Which features suit which classifier? First stages crossed with second ones: Table 8.

Command   python -m experiments.feature_sources --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/feature_sources/page.html
Measures  top-1 accuracy of classifiers retrained on the frozen features of three first stages
Expected  features of plain softmax are best, those of class-balanced sampling worst. Published
          (CIFAR-10-LT, imbalance factor 200): softmax then softmax 69.5, with CBS 76.6, then
          Balanced Softmax 78.5; Balanced Softmax twice 77.0; after CBS 68.2
Found     for Balanced Softmax 64.2 ± 0.9 on features of CBS, 57.8 ± 1.2 on its own, 57.4 ± 1.9 on
          softmax's: those of CBS are 6.4 ± 0.4 above its own, which the paper has last; the other
          two are not told apart (cpu, seeds 0 to 2)
"""

from balms_jax.report.comparison import Replicates, format_statistic
from experiments import numbers, whole_runs
from experiments.whole_runs import Question

SOURCES = {  # method: (the features', the classifier's)
    'softmax_decoupled': ('softmax', 'softmax'),
    'softmax_decoupled_cbs': ('softmax', 'softmax + CBS'),
    'balanced_softmax_decoupled': ('softmax', 'Balanced Softmax'),
    'balanced_softmax_on_balanced_features': ('Balanced Softmax', 'Balanced Softmax'),
    'balanced_softmax_on_cbs_features': ('softmax + CBS', 'Balanced Softmax'),
}
# Their own rows are not shown: the others take over their first stages.
BEGINNINGS = ('softmax', 'balanced_softmax', 'softmax_cbs')
PUBLISHED = dict(zip(SOURCES, (69.5, 76.6, 78.5, 77.0, 68.2), strict=True))
FEW = ('balanced_softmax_decoupled', 'balanced_softmax_on_cbs_features')
QUESTION = Question(
    __doc__,
    'feature_sources',
    'Which features, which classifier?',
    (*BEGINNINGS, *SOURCES),
    FEW,
    needed=('balanced_softmax_decoupled',),
    factors={'paper': (200.0,)},
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    trained = whole_runs.train(options, QUESTION)
    runs = [run for run in trained if run.facts['method'] in SOURCES]
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    drawn = figures.accuracy()[:2]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def row(group: Replicates) -> dict[str, str]:
    """A pair of stages, and its accuracies."""
    method = group.first.facts['method']
    features, classifier = SOURCES[method]
    return {
        'features of': features,
        'classifier by': classifier,
        **numbers.accuracies(group),
        'published %, IF 200': f'{PUBLISHED[method]:.1f}',
    }


def answer(groups: list[Replicates]) -> str:
    """In words: with Balanced Softmax as the classifier, whose features are best by how much."""
    found = sorted(
        (g for g in groups if SOURCES[g.first.facts['method']][1] == 'Balanced Softmax'),
        key=lambda group: -float(group.statistics('top1')[0]),
    )
    names = [SOURCES[group.first.facts['method']][0] for group in found]
    told = ', '.join(
        f'of {name} {format_statistic(group, "top1")} %'
        for name, group in zip(names, found, strict=True)
    )
    steps = ''.join(
        f' From those of {b} to those of {a}: {numbers.gain(better, worse)} points.'
        for a, b, better, worse in zip(names, names[1:], found, found[1:], strict=False)
    )
    return f'With Balanced Softmax as the classifier, by features: {told}.{steps}'


if __name__ == '__main__':
    main()
