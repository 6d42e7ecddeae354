"""CHEX on point clouds: PointNet (Qi et al., CVPR 2017) explored while it trains. The method is `stages.chex`'s.

The layers of PointNet are the same MLP on every point; all hidden widths are prunable, the global feature's included.
Almost every layer has more channels than numbers per channel, so leverage scores are taken there too (the code
released for images falls back to L1 norms; the row `chex-wide-l1` shows what that would do).

Stages: prepare -> pretrain (dense networks) -> prune (methods x seeds, all FLOPs targets) -> evaluate -> report
(table T4, claims).

| scale | data | expect | cost | command |
|---|---|---|---|---|
| quick | generated solids, 64 points | CHEX level with narrow | 3.5 min of a core | `dvc repro chex-points` |
| real | ModelNet10 meshes, 1,024 points | not run yet | not measured | `-S chex-points=real` |
| paper | ModelNet40, 1,024 points | not published | not measured | `-S chex-points=paper` |
"""
