"""MAE-DET: Revisiting Maximum Entropy Principle in Zero-Shot NAS for Efficient Object Detection (first: ZenDet).
Sun et al., ICML 2022, arXiv 2111.13336.

Idea: score a backbone without training it, by the entropy of its feature maps when weights and input are
Gaussian noise, with weights on the stages that feed a detector; let an evolution maximise that under FLOPs,
parameter, depth and latency limits. Here the expected score is computed exactly, from the structure alone, in
some tens of microseconds.

Stages: prepare (scenes or COCO); official (the authors' own search), score-check (three ways to the score) and
search (strategies x seeds), which need no data; train (backbones x seeds, every head) -> evaluate -> report. Method:
`method/` (structure, cost, entropy, spaces, evolution, masternet). Detectors: `detector.py`, on `stages.common.dense`
(scenes, COCO, training, GFLV2 with ATSS). Your own budget: `design.py`. Authors' files: `official.py`.

| scale | searches | detectors | expect | cost | command |
|---|---|---|---|---|---|
| quick | 16k evaluations | generated scenes | score > 2050 | 3.6 min, 2 cores | `dvc repro zendet` |
| real | 100k evaluations | 10k images of COCO | the same order | days, 1 GPU | `dvc exp run -S zendet=real zendet` |
| paper | 100k evaluations | COCO, 73 epochs | AP 44.7 .. 47.8 | days, 8 GPUs | `dvc exp run -S zendet=paper zendet` |

A backbone for your budget: `python -m stages.zendet.design OUT --flops 300e6 --size 224 --layers 49`
"""
