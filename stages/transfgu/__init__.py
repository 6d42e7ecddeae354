"""TransFGU: a top-down approach to fine-grained unsupervised semantic segmentation. Yin et al., ECCV 2022.

arXiv 2112.01515.

Idea: a self-supervised ViT knows objects in its class token. Cluster the class tokens of many windows into K concepts,
project each concept back onto pixels (a CAM through the last attention), and train a mask-transformer head on these
pseudo labels, several times from its first weights, each time with the last head as teacher.

Stages: prepare -> pretrain (DINO) -> features (class tokens of windows) -> cluster (concepts) -> pseudo_label (CAM) ->
train (heads, rivals) -> evaluate -> report. Changing K re-runs cluster and later. Method: `method/` (start with
windows.py, concept_cam.py, mask_transformer.py, losses.py). Your own images: `segment.py`. Authors' files: `official.py`.

| scale | data | backbone | expect | cost | command |
|---|---|---|---|---|---|
| quick | PartScenes, generated | DINO trained here | see findings.md | 4.8 min, 2 cores | `dvc repro transfgu` |
| real | CamVid | DINO trained here | full > CAM | hours, 1 GPU | `dvc exp run -S transfgu=real transfgu` |
| paper | COCO-Stuff ... | DINO ViT-S/8 | 16.2 mIoU, published | days, GPUs | `dvc exp run -S transfgu=paper transfgu` |

Your own folder: `python -m stages.transfgu.segment IMAGES OUTPUT --backbone timm:NAME` (or a DINO file)
"""
