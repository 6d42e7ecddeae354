"""Detection, instance and semantic segmentation: what the dense-task pipelines of several papers share.

Data: `scenes.py` draws images, `scene_folders.py` writes them as COCO and ADE20K are laid out; `coco.py` and `semantic.py`
read such folders, generated or real, with one code. Networks: `detectors.py` (torchvision's Mask R-CNN on any
backbone), `upernet.py`. Training: `params.py`, `batches.py`, `augmentation.py`, `training.py`. Tests: `inference.py`,
`average_precision.py` (pycocotools is the metric), `mean_iou.py`.
"""
