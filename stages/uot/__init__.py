"""Improved Fine-Tuning by Better Leveraging Pre-Training Data. Liu et al., NeurIPS 2022, arXiv 2111.12292.

Idea: a better pre-trained start helps little once there is target data; what helps is to keep training on
pre-training data that resembles the target. The classes to keep are chosen by unbalanced optimal transport
between class means, in a fraction of a second; then one backbone with two heads is trained on both.

Stages: prepare -> pretrain (starts) -> select (rank source classes) -> finetune (selections x seeds, all
starts, targets and fractions) -> evaluate -> report; beside them `theory` (simulated excess risks) and
`released` (the paper's own selections, no images needed; not at quick scale). Method: `method/` (start with transport.py and
selection.py). Your own folders: `rank.py`. Authors' files: `official.py`.

| scale | data | networks | expect | cost | command |
|---|---|---|---|---|---|
| quick | generated | MLP | uot >> vanilla, random | 2.5 min, 2 cores | `dvc repro uot` |
| real | eight targets, ImageNet, released | ResNet-18 | uot > vanilla | hours, 1 GPU | `dvc exp run -S uot=real uot` |
| paper | the same | + MoCo-v2 | +2.93 points (published) | days, 8 GPUs | `dvc exp run -S uot=paper uot` |

Released class means come from your own clone of the authors' repository (`import_released.py`); their
selections alone: `dvc exp run -S uot=real uot-released`.

Select for your own folders: `python -m stages.uot.rank SOURCE TARGET --weights resnet18-f37072fd.pth`
"""
