"""HiCo: Learning from Untrimmed Videos with Hierarchical Consistency. Qing et al., CVPR 2022, arXiv 2204.03017.

Idea: clips seconds apart look alike, clips minutes apart of the same video share a topic only. So only near clips
attract each other (visual consistency, VCL), whether two clips are of one video is a classification of pairs,
however far apart they are (topical consistency, TCL), and the distance of the near pair widens during training
(gradual sampling).

Stages: prepare (videos, as files) -> pretrain (methods x seeds) -> finetune (features, LFT, full) -> evaluate ->
report; beside them `theory` (the simulation of gradual sampling). Method: `method/` (start with losses.py). Finding
actions in untrimmed videos: `localisation/`. Video: `stages/common/video`. Your own method: an entry of `METHODS` in
`cells.py`. Real videos: `folders.py`. Authors' files: `official.py`.

| scale | data | networks | expect | cost | command |
|---|---|---|---|---|---|
| quick | generated, 24 x 24 | four separable convolutions | reports/hico/findings.md | minutes, 2 cores | `dvc repro hico` |
| real | Breakfast Actions, UCF101, HMDB51 | R(2+1)D-10 | HiCo above SimCLR | not measured; a GPU | `-S hico=real` |
| paper | K400, UK400, ActivityNet | S3D-G, BMN | HMDB51 60.4 (UK400), 56.3 (K400) | not measured; 8 GPUs | `-S hico=paper` |
"""
