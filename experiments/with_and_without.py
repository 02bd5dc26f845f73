"""What does the loss bring, what the sampler, what both? R2Q6 and R3Q2 of the reply.

Command   python -m experiments.with_and_without --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute
Ends in   experiments/results/with_and_without/page.html
Measures  top-1 accuracy, over all classes and by shot group, decoupled and end to end
Expected  each alone gains on softmax; both gain most; the sampler's gain is smaller beside
          Balanced Softmax, which leaves it little to balance
Found     decoupled +14.0 ± 0.5 by the loss, +13.4 ± 0.8 by the sampler, +13.9 ± 0.4 by both; end
          to end +14.8 ± 0.7 by the loss, −0.3 ± 1.1 more by the sampler, not told from 0 (cpu,
          seeds 0 to 2)
"""

from balms_jax.report.comparison import Replicates
from experiments import numbers, whole_runs
from experiments.whole_runs import Question

METHODS = (
    'softmax',
    'balanced_softmax',
    'balms_end_to_end',
    'softmax_decoupled',
    'balanced_softmax_decoupled',
    'softmax_decoupled_meta_sampler',
    'balms',
)
FEW = ('softmax_decoupled', 'balanced_softmax_decoupled', 'softmax_decoupled_meta_sampler', 'balms')
PARTS = {  # method: (the loss, the sampler, decoupled)
    'softmax': (False, False, False),
    'balanced_softmax': (True, False, False),
    'balms_end_to_end': (True, True, False),
    'softmax_decoupled': (False, False, True),
    'balanced_softmax_decoupled': (True, False, True),
    'softmax_decoupled_meta_sampler': (False, True, True),
    'balms': (True, True, True),
}
QUESTION = Question(
    __doc__,
    'with_and_without',
    'The loss, the sampler, and both',
    METHODS,
    FEW,
    needed=('softmax_decoupled', 'balms'),
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    groups, figures = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    drawn = figures.accuracy()[:2]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def row(group: Replicates) -> dict[str, str]:
    """A method: its parts, and its accuracies."""
    loss, sampler, decoupled = PARTS[group.first.facts['method']]
    return {
        'method': group.label,
        'loss': 'Balanced Softmax' if loss else 'softmax',
        'sampler': 'learned' if sampler else 'none',
        'trained': 'decoupled' if decoupled else 'end to end',
        **numbers.accuracies(group),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: the gains, with their standard errors over seeds."""
    told, by_method = [], {group.first.facts['method']: group for group in groups}
    for text, method, base in (
        ('decoupled, the loss alone brings {}', 'balanced_softmax_decoupled', 'softmax_decoupled'),
        ('the sampler alone {}', 'softmax_decoupled_meta_sampler', 'softmax_decoupled'),
        ('both {}', 'balms', 'softmax_decoupled'),
        ('the sampler beside the loss {}', 'balms', 'balanced_softmax_decoupled'),
        ('end to end, the loss brings {}', 'balanced_softmax', 'softmax'),
        ('the sampler beside it {}', 'balms_end_to_end', 'balanced_softmax'),
    ):
        if {method, base} <= by_method.keys():
            told.append(text.format(numbers.gain(by_method[method], by_method[base])))
    gains = '; '.join(told)
    return f'Points, paired by seed: {gains}.'


if __name__ == '__main__':
    main()
