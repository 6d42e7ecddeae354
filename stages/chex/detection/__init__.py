"""CHEX on detectors: SSD (table T2) and Mask R-CNN (table T3), whose bodies are explored while they train.

As in the paper only the body (a ResNet) is pruned: its residual stream, and so all that the heads read, stays dense. Scenes,
COCO's layout, training batches and average precision are `stages.common.dense`'s; the method is `stages.chex`'s.

Stages: prepare -> pretrain (dense detectors) -> prune (methods x seeds, all detectors and FLOPs targets) -> evaluate ->
report (tables T2 and T3, claims). Detectors: `networks.py`, `ssd.py`.

| scale | data | expect | cost | command |
|---|---|---|---|---|
| quick | generated scenes, 64 px | CHEX between narrow and magnitude | 4 min of a core | `dvc repro chex-detection` |
| real | a subset of COCO | not run yet | not measured | `-S chex-detection=real` |
| paper | COCO | SSD 25.9 AP at -50 % (published) | 8 GPUs for days | `-S chex-detection=paper` |
"""
