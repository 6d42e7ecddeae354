"""CHEX: CHannel EXploration for CNN Model Compression. Hou et al., CVPR 2022, arXiv 2203.15794.

Idea: one training run from scratch yields a slim network. Every few epochs the network is pruned to a target
(column subset selection by leverage scores within a layer, one threshold on norm scales between layers) and
some pruned channels come back with their last values, sampled by how poorly the kept ones explain them; fewer
and fewer do.

Stages: prepare -> pretrain (dense networks) -> prune (methods x seeds, all FLOPs targets) -> evaluate ->
report (tables, claims). Method: `method/` (start with explorer.py). Your own network: `explore.py`.
Authors' weights: `official.py`. Other tasks, as pipelines of their own: detectors (`detection/`, `dvc repro
chex-detection`) and point clouds (`points/`, `dvc repro chex-points`). What the three share starts in `study.py`.

| scale | data | networks | expect | cost | command |
|---|---|---|---|---|---|
| quick | generated shapes, digits | small ResNet | CHEX >= scratch, one-shot L1 | minutes, 2 cores | `dvc repro chex` |
| real | CIFAR-10 | ResNet-20 | CHEX above scratch | hours on a GPU | `-S chex=real` |
| paper | ImageNet | ResNet-50 | 76.0 % at 1.0 G (published) | 8 GPUs for days | `-S chex=paper` |
"""
