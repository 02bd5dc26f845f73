"""Average precision of detections, as LVIS and COCO count it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from balms_jax.detection import run_lengths
from balms_jax.detection.annotations import FREQUENCIES, AnnotatedImage
from balms_jax.detection.inference import Detections
from balms_jax.detection.pasting import paste

KINDS = ('segm', 'bbox')


class AveragePrecision(NamedTuple):
    """Precision, averaged over recalls, IoUs of 0.5 to 0.95 and categories: in 0..1."""

    all: float
    """Over all categories that have an object."""
    at_50: float
    """At an IoU of 0.5."""
    at_75: float
    """At an IoU of 0.75."""
    rare: float | None
    """AP_r; None where no rare category has an object."""
    common: float | None
    """AP_c; None where no common category has an object."""
    frequent: float | None
    """AP_f; None where no frequent category has an object."""
    of_categories: NDArray[np.float64]
    """In the order of the categories' ids, ``[categories]``; NaN for one without an object."""


def average_precision(
    content: dict[str, Any],
    results: Iterable[dict[str, Any]],
    kind: str = 'segm',
    *,
    lvis: bool = True,
    most: int = 300,
) -> AveragePrecision:
    """Compares detections with the ground truth.

    Args:
        content: annotations in the format of LVIS or COCO, as their file holds them.
        results: detections, as :func:`as_results` gives them, of any number of images.
        kind: ``'segm'`` compares masks, ``'bbox'`` boxes.
        lvis: whether an image is judged by the categories alone that are known to be there or not,
            and an unmatched detection is no error where a category is not annotated exhaustively.
            Else every image is judged by all categories, as COCO's are.
        most: the best so many detections of an image count.

    Returns:
        The average precision.

    Raises:
        ValueError: if the kind is unknown, a result is of no image of the content, or nothing can
            be judged for there is no object.

    Example:
        >>> content = {
        ...     'images': [{'id': 1, 'height': 8, 'width': 8, 'neg_category_ids': [],
        ...                 'not_exhaustive_category_ids': []}],
        ...     'categories': [{'id': 1, 'name': 'cup', 'frequency': 'r'}],
        ...     'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'area': 4,
        ...                      'bbox': [1, 1, 2, 2]}]}
        >>> result = {'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 2, 2], 'score': 0.9}
        >>> found = average_precision(content, [result], 'bbox')
        >>> found.all, found.rare, found.common
        (1.0, 1.0, None)

    References:
        Gupta et al., LVIS (arXiv 1908.03195), §2 and §4; Lin et al., Microsoft COCO (arXiv
        1405.0312); computed by faster-coco-eval.
    """
    if kind not in KINDS:
        raise ValueError(f'kind: got {kind!r}, wanted one of {", ".join(KINDS)}')
    known = {image['id'] for image in content['images']}
    best = _best_of_images(results, most)
    strangers = {result['image_id'] for result in best} - known
    if strangers:
        raise ValueError(f'results: got image_id {min(strangers)}, which is not in the content')
    # The evaluator writes into what it is given.
    truth = COCO(
        {
            'images': [dict(image) for image in content['images']],
            'categories': [dict(category) for category in content['categories']],
            'annotations': [{'iscrowd': 0, **a} for a in content['annotations']],
        }
    )
    evaluator = COCOeval_faster(
        truth, truth.loadRes(best), kind, lvis_style=lvis, print_function=_silence
    )
    evaluator.params.maxDets = [most]
    evaluator.evaluate()
    evaluator.accumulate()
    # [IoUs, recalls, categories, areas, numbers of detections]: of all areas; −1 without object.
    precision = evaluator.eval['precision'][:, :, :, 0, -1]
    has_object = (precision > -1).all((0, 1))
    if not has_object.any():
        raise ValueError('content: got no object to be found')
    per_iou = np.where(has_object, precision, np.nan).mean(1)
    of_categories = per_iou.mean(0)
    listed = sorted(content['categories'], key=lambda category: category['id'])
    frequencies = np.array([category.get('frequency', '') for category in listed])

    def of_group(group: str) -> float | None:
        found = of_categories[has_object & (frequencies == group)]
        return float(found.mean()) if found.size else None

    rare, common, frequent = map(of_group, FREQUENCIES)
    return AveragePrecision(
        float(of_categories[has_object].mean()),
        float(per_iou[0, has_object].mean()),
        float(per_iou[5, has_object].mean()),
        rare,
        common,
        frequent,
        of_categories,
    )


def as_results(
    found: Detections, image: AnnotatedImage, category_ids: Sequence[int], scale: float = 1.0
) -> list[dict[str, Any]]:
    """An image's detections in the original image, in the format of COCO's results.

    Args:
        found: the image's detections, on the host.
        image: which it is.
        category_ids: of each category, as the annotations have them.
        scale: by which the image was enlarged for the detector.

    Returns:
        Of each detection a dictionary of image and category, box, mask and score.

    Example:
        >>> image = AnnotatedImage(7, '7.jpg', 8, 8, np.zeros((0, 4), np.float32),
        ...                        np.zeros(0, np.int32), np.zeros(0, bool), ())
        >>> found = Detections(*map(np.array, ([[2.0, 2.0, 6.0, 4.0]], [0.5], [1],
        ...                                    np.ones((1, 28, 28)), [True])))
        >>> (result,) = as_results(found, image, category_ids=(3, 9), scale=2.0)
        >>> result['image_id'], result['category_id'], result['bbox'], result['score']
        (7, 9, [1.0, 1.0, 2.0, 1.0], 0.5)
    """
    results = []
    for k in np.flatnonzero(found.where):
        x0, y0, x1, y1 = (np.asarray(found.boxes[k], np.float64) / scale).tolist()
        pixels = paste(found.masks[k], found.boxes[k], (image.height, image.width), scale)
        results.append(
            {
                'image_id': image.id,
                'category_id': category_ids[int(found.categories[k])],
                'bbox': [x0, y0, x1 - x0, y1 - y0],
                'score': float(found.scores[k]),
                'segmentation': run_lengths.encode(pixels),
            }
        )
    return results


def _best_of_images(results: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """LVIS limits the detections of an image over all categories, COCO's evaluator within each."""
    of_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        of_image[result['image_id']].append(result)
    best: list[dict[str, Any]] = []
    for found in of_image.values():
        best += [dict(r) for r in sorted(found, key=lambda result: -result['score'])[:most]]
    return best


def _silence(*_: Any) -> None:
    """The evaluator would print its tables."""
