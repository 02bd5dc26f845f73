"""Evaluation is masked sums divided once: batches and padding must not show."""

import numpy as np
import pytest
from sklearn import metrics

from balms_jax.training import evaluation

COUNTS = (200, 50, 10, 5)


def outcome(test_priors=('uniform',), *, batch_size=7, post_hoc_tau=0.0, labels=None, learned=None):
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(4, dtype=np.int32), 10) if labels is None else labels
    logits = random.normal(size=(len(labels), 4)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1
    evaluate = evaluation.make_evaluator(
        lambda variables, inputs: inputs * variables, COUNTS, test_priors, post_hoc_tau, batch_size
    )
    learned = np.zeros(4) if learned is None else learned
    return logits, labels, evaluate(np.float32(1), logits, labels, learned)


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize('batch_size', [1, 7, 40, 64])
def test_agrees_with_scikit_learn_for_any_batch_size(batch_size):
    """A padded batch counts its real examples only."""
    logits, labels, result = outcome(batch_size=batch_size)
    result = result['uniform']
    predicted = logits.argmax(1)
    assert result['top1'] == pytest.approx(metrics.accuracy_score(labels, predicted), rel=1e-6)
    wanted = metrics.log_loss(labels, softmax(logits.astype(np.float64)))
    assert result['negative_log_likelihood'] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_array_equal(
        result['confusion_matrix'], metrics.confusion_matrix(labels, predicted)
    )
    np.testing.assert_allclose(result['marginal_likelihood'], softmax(logits).mean(0), rtol=1e-5)
    recall = metrics.recall_score(labels, predicted, average=None)
    np.testing.assert_allclose(result['per_class_accuracy'], recall)
    assert result['many'] == pytest.approx(recall[0])
    assert result['medium'] == pytest.approx(recall[1])
    assert result['few'] == pytest.approx(recall[2:].mean())


def test_an_absent_class_or_group_is_none_never_zero():
    """A mean over nothing is not 0: a table would show a failure that nobody measured."""
    labels = np.array([1, 2, 3, 1], np.int32)
    _, _, result = outcome(labels=labels)
    assert result['uniform']['many'] is None
    assert result['uniform']['per_class_accuracy'][0] is None


def test_a_test_prior_moves_logits_and_weighs_examples():
    """Under p(y) = π a class counts as often as it occurs, and its logit moves by log π."""
    logits, labels, result = outcome(('uniform', 'train', 'reversed'))
    share = np.array(COUNTS) / sum(COUNTS)
    for name, prior in (('train', share), ('reversed', share[::-1])):
        correct = (logits + np.log(prior)[None, :]).argmax(1) == labels
        wanted = sum(prior[j] * correct[labels == j].mean() for j in range(4))
        assert result[name]['top1'] == pytest.approx(wanted, rel=1e-5)


def test_a_test_prior_takes_the_place_of_the_learned_one():
    """Softmax training has learned the training prior: added again, it would count twice."""
    prior = np.log(np.array(COUNTS) / sum(COUNTS))
    logits, labels, result = outcome(('uniform', 'train'), learned=prior)
    correct = logits.argmax(1) == labels
    wanted = sum(np.exp(prior[j]) * correct[labels == j].mean() for j in range(4))
    assert result['train']['top1'] == pytest.approx(wanted, rel=1e-5)
    assert result['uniform']['top1'] == pytest.approx(correct.mean(), rel=1e-6)


def test_post_hoc_adjustment_subtracts_the_training_prior():
    """η − τ log π, the rival of training with the prior."""
    logits, labels, result = outcome(post_hoc_tau=0.5)
    adjusted = logits - 0.5 * np.log(np.array(COUNTS) / sum(COUNTS))[None, :]
    wanted = (adjusted.argmax(1) == labels).mean()
    assert result['uniform']['top1'] == pytest.approx(wanted, rel=1e-6)


def test_reversed_prior_gives_the_rarest_class_the_largest_share():
    """Ties keep their order, so that it is a permutation of the counts."""
    log_prior = evaluation.named_log_priors(('reversed',), (5, 5, 1, 10))['reversed']
    np.testing.assert_allclose(np.exp(log_prior) * 21, [5, 5, 10, 1])
