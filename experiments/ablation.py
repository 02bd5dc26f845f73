"""Where does every method stand? Tables 2 and 5 of the paper, each row measured here.

Command   python -m experiments.ablation --data_dir data [--scale cpu]
Scales    smoke  four rows on the embedded digits, one seed: no download
          cpu    ResNet-8 of width 8, 3,600 steps of 64, CIFAR-10-LT, factor 100, three seeds
          paper  the paper's recipe, both CIFARs, imbalance factors 200, 100 and 10, three seeds
          strong mixup, a cosine classifier and 400 epochs: for --methods that take mixed labels
Cost      cpu: four minutes on two CPU cores for each first stage that is not there yet, seconds
          for each second one; smoke: a minute; paper: on one H100 135 s for each first stage in
          float32, 82 s in bfloat16 (measured on 6,000 of 13,000 steps, not run to the end)
Data      python -m balms_jax.data.sources cifar10 --data_dir data
Ends in   --folder: a run of every row and seed; --output: page.html, rows.json
Measures  top-1 accuracy at the last step, on the balanced test set, over seeds
Expected  Balanced Softmax above softmax by several points, most of it in the tail; decoupled rows
          above end-to-end softmax; BALMS first, as in the paper
Found     softmax 42.9 ± 1.5, Balanced Softmax 57.8 ± 1.3, BALMS 57.3 ± 1.7, softmax + CBS
          62.2 ± 0.6; decoupled Balanced Softmax + CBS far below, at 44.7 ± 1.2. Of 42 orderings
          that table 5 tells apart 21 hold, 15 are not told apart, 6 are reversed (CIFAR-10-LT,
          factor 100, cpu, seeds 0 to 2). CIFAR-100-LT, factor 100, the rows of table 5: softmax
          19.6 ± 0.7, Balanced Softmax 24.4 ± 0.7, BALMS 24.4 ± 1.1, with CBS 15.6 ± 1.1; of 41
          orderings 26 hold, 12 are not told apart, 3 are reversed
"""

from experiments import ablation_page, published, whole_runs
from experiments.comparison import console
from experiments.whole_runs import Question

FEW = ('softmax', 'balanced_softmax', 'softmax_decoupled_cbs', 'balms')
QUESTION = Question(
    __doc__,
    'ablation',
    'Tables 2 and 5: every method beside the published one',
    published.METHODS,
    FEW,
    factors={'paper': published.IMBALANCE_FACTORS},
    datasets={'paper': published.DATASETS},
    several=True,
    any_method=True,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    page = ablation_page.write(
        whole_runs.train(options, QUESTION), options.output, whole_runs.missing(options)
    )
    whole_runs.keep(options)
    console.print(f'page: {page}', markup=False)


if __name__ == '__main__':
    main()
