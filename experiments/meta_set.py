"""Where should the meta set come from? What users of the released code asked.

Command   python -m experiments.meta_set --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: two first stages of 3,600 steps a seed, and a minute for each second one; smoke: a
          minute
Ends in   experiments/results/meta_set/page.html
Measures  top-1 accuracy of BALMS with its meta set drawn class by class from the training set
          itself, from a second long-tailed subset of the pool (a redraw, which brings images that
          training never saw), and from a tenth held out of the training set; for the last beside a
          run that lost the same tenth and draws its meta set from what is left. Seeds are those of
          weights and draws: of subset, redraw and held-out tenth there is one each
Expected  a redraw gains, most in the tail, for it adds images; holding out costs more images of the
          tail than an unseen meta set is worth
Found     57.3 ± 1.7 with the training set, a redraw +0.1 ± 0.1, a tenth held out −1.3 ± 0.6, of
          which the lost tenth is −1.6 ± 0.8 and that the meta set is unseen +0.3 ± 0.2: three seeds
          tell none of them from 0 (cpu, seeds 0 to 2)
"""

from ml_collections import ConfigDict

from balms_jax.report.comparison import Replicates
from balms_jax.report.runs import SHOT_GROUPS, shot_mask
from experiments import numbers, whole_runs
from experiments.whole_runs import Question, Variant

HELD_OUT = 0.1


def _redrawn(config: ConfigDict) -> None:
    config.stage_2.meta.source = 'redraw'


def _smaller(config: ConfigDict) -> None:
    config.data.held_out = HELD_OUT


def _held_out(config: ConfigDict) -> None:
    _smaller(config)
    config.stage_2.meta.source = 'held_out'


VARIANTS = {
    'balms_redraw': Variant('balms', _redrawn),
    'balms_smaller': Variant('balms', _smaller),
    'balms_held_out': Variant('balms', _held_out),
}
NAMES = {
    'balms': 'the training set',
    'balms_redraw': 'a second subset of the pool',
    'balms_smaller': 'the training set, a tenth held out and unused',
    'balms_held_out': 'a tenth held out of the training set',
}
QUESTION = Question(
    __doc__,
    'meta_set',
    'Where should the meta set come from?',
    ('softmax', *NAMES),
    tuple(NAMES),
    needed=('balms',),
    variants=VARIANTS,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    trained = whole_runs.train(options, QUESTION)
    runs = [run for run in trained if whole_runs.name_of(run) in NAMES]
    groups, figures = whole_runs.figures_of(runs, NAMES)
    rows = [row(group) for group in groups]
    drawn = figures.accuracy()[:2] + figures.learned()[:1]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def row(group: Replicates) -> dict[str, str]:
    """A meta set: what it is made of, and what it is worth."""
    facts = group.first.facts
    held_out = facts['held_out_examples']
    return {
        'meta set': group.label,
        'images trained on': f'{sum(facts["class_counts"]):,}',
        'held out': f'{held_out:,}' if held_out else 'none',
        **numbers.accuracies(group),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: what each other meta set gains on the one that needs no other images."""
    by_name = {whole_runs.name_of(group.first): group for group in groups}
    told = []
    for text, name, base in (
        ('A second subset of the pool in place of the training set brings {}', 'redraw', ''),
        ('holding a tenth out for it brings {}', 'held_out', ''),
        ('of which the lost tenth is {}', 'smaller', ''),
        ('and that the meta set is unseen {}', 'held_out', 'smaller'),
    ):
        pair = [by_name.get(f'balms_{part}' if part else 'balms') for part in (name, base)]
        if pair[0] and pair[1]:
            told.append(text.format(numbers.gain(pair[0], pair[1])))
            if name == 'redraw':
                told += groups_gained(pair[0], pair[1])
    return (
        f'{"; ".join(told)} points, paired by seed. Subset, redraw and held-out tenth are one '
        'each: how much they vary is not measured.'
    )


def groups_gained(group: Replicates, base: Replicates) -> list[str]:
    """In words, the gain on each shot group that has classes."""
    counts = base.first.class_counts
    return [
        f'on the {name}-shot classes {numbers.gain(group, base, name)}'
        for name in SHOT_GROUPS
        if shot_mask(counts, name).any()
    ]


if __name__ == '__main__':
    main()
