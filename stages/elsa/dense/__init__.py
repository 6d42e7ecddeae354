"""ELSA in detection and segmentation: ELSA-Swin as the backbone of Mask R-CNN and UPerNet, against Swin.

Idea: the trunk of ELSA-Swin, a LayerNorm per stage, takes Swin's place in both; data, schedule and heads are the same for
every row (card of ELSA, "Training recipes", tables T2 and T3).

Stages: prepare -> train (mixers x seeds; a cell trains the detector and the segmentor) -> evaluate -> report.
Method: `stages/elsa/method/dense.py` is the backbone; heads, data and metrics are `stages/common/dense`.

| scale | data | expect | command |
|---|---|---|---|
| quick | generated scenes, 64 px | `reports/elsa-dense/findings.md` | `dvc repro elsa-dense` |
| real | subsets of COCO and ADE20K, or folders like them | not run yet | `dvc exp run -S elsa-dense=real elsa-dense` |
| paper | COCO 2017, ADE20K | 45.7 box AP, 47.9 mIoU (published) | `dvc exp run -S elsa-dense=paper elsa-dense` |

What a scale costs is said in its preset, `conf/elsa-dense/`.
"""
