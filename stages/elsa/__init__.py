"""ELSA: Enhanced Local Self-Attention for Vision Transformer. Zhou et al., arXiv 2112.12786; IJCV 2023.

Idea: self-attention in windows is no better than depthwise convolution in the same place, because its logits lack position
embeddings that meet the features, and because windows do not slide. ELSA makes logits from the per-pixel product
q * k with a small convolution net, and turns each head's attention into a filter per channel with static matrices.

Stages: prepare -> pretrain (mixers x seeds, all in one trunk) -> finetune (second data set) -> evaluate -> report.
Method: `method/` (start with taps.py, aggregate.py, attention.py). Rows: `variants.py`. Authors' files: `official.py`.
Detection and segmentation: `dense/`, a pipeline of its own (`dvc repro elsa-dense`).

| scale | data | trunk | expect | cost | command |
|---|---|---|---|---|---|
| quick | generated textures | 14 x 14 tokens | see `reports/elsa/findings.md` | minutes, 2 cores | `dvc repro elsa` |
| real | CIFAR-10 | four stages at 32 x 32 | not run yet | hours, 1 GPU | `dvc exp run -S elsa=real elsa` |
| paper | ImageNet | Swin-T | 82.7 % (published) | days, 8 GPUs | `dvc exp run -S elsa=paper elsa` |
"""
