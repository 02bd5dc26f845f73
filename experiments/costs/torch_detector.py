"""torchvision's Mask R-CNN, which takes steps when it is told to.

Command   PYTHON experiments/costs/torch_detector.py, where PYTHON has torch and torchvision

`experiments/detector_cost.py` runs it by turns with ours. The first line it reads is the setting
as JSON: `device`, `depth`, `side`, `batch_size`, `categories`, `regions`, `proposals`, `detections`
and `objects`. The first line it writes holds its versions, and as JSON the floating-point
operations of the convolutions and matrix products of `train` and `infer`. Each further line that it
reads, `train` or `infer`, is answered by the seconds that it took.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


def main() -> None:
    """Takes steps until its input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as XLA's default is.
    device = torch.device(setting['device'])
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
    ).to(device)
    # Masks stay as the network gives them: pasting them into the image is timed on neither side.
    model.transform.postprocess = lambda result, *_: result
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = [torch.rand(3, side, side, device=device) for _ in range(setting['batch_size'])]
    corners = torch.tensor(setting['objects'], dtype=torch.float32, device=device)
    masks = torch.zeros(len(corners), side, side, dtype=torch.uint8, device=device)
    for mask, (x0, y0, x1, y1) in zip(masks, corners.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(len(corners), device=device) % categories + 1
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

    def seconds(task: Callable[[], None]) -> float:
        wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
        wait()
        start = time.perf_counter()
        task()
        wait()
        return time.perf_counter() - start

    tasks = {'train': train, 'infer': infer}
    operations = {}
    for name, task in tasks.items():
        with FlopCounterMode(display=False) as counter:
            task()
        operations[name] = counter.get_total_flops()
    versions = torch.__version__, torchvision.__version__
    print('ready', *versions, json.dumps(operations), flush=True)
    for line in sys.stdin:
        print(seconds(tasks[line.strip()]), flush=True)


if __name__ == '__main__':
    main()
