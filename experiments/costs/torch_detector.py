"""torchvision's Mask R-CNN, which takes steps when it is told to.

Command   PYTHON experiments/costs/torch_detector.py, where PYTHON has torch and torchvision

`experiments/detector_cost.py` runs it by turns with ours. The first line it reads is the setting as
JSON: `depth`, `side`, `batch_size`, `categories`, `regions`, `proposals` and `objects`. Each
further line, `train` or `infer`, is answered by the seconds that it took.
"""

import json
import sys
import time

import torch
import torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


def main() -> None:
    """Takes steps until its input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    side, categories = setting['side'], setting['categories']
    backbone = resnet_fpn_backbone(
        backbone_name=f'resnet{setting["depth"]}', weights=None, trainable_layers=5
    )
    # Its random weights score all alike: a threshold of 0 keeps as many as there may be.
    model = MaskRCNN(
        backbone,
        categories + 1,
        min_size=side,
        max_size=side,
        rpn_pre_nms_top_n_train=setting['proposals'],
        rpn_post_nms_top_n_train=setting['proposals'],
        rpn_pre_nms_top_n_test=setting['proposals'],
        rpn_post_nms_top_n_test=setting['proposals'],
        box_batch_size_per_image=setting['regions'],
        box_score_thresh=0.0,
        box_detections_per_img=setting['detections'],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = [torch.rand(3, side, side) for _ in range(setting['batch_size'])]
    corners = torch.tensor(setting['objects'], dtype=torch.float32)
    masks = torch.zeros(len(corners), side, side, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, corners.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(len(corners)) % categories + 1
    truth = [{'boxes': corners, 'labels': labels, 'masks': masks} for _ in images]

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(images, truth).values()).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(images)

    tasks = {'train': train, 'infer': infer}
    for task in tasks.values():
        task()
    print('ready', torch.__version__, torchvision.__version__, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        tasks[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    main()
