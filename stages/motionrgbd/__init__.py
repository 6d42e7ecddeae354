"""MotionRGBD: decoupling and recoupling spatiotemporal representation for RGB-D motion recognition. CVPR 2022.

Zhou et al., arXiv 2112.09129.

Idea: a network per frame (DSN) makes tokens, three transformers at three frame rates (DTN) read them; RCM re-weights the
tokens and is taught by the transformers; FRP maps say where frames move; CAPF lets colour and depth talk at the tokens and
at the class tokens.

Stages: prepare -> pretrain (RGB and depth; ablation rows) -> finetune (fusions) -> evaluate -> report. Method: `method/`
(start with guidance.py, unimodal.py, capf.py). The generated world: `world.py`. Authors' files: `official.py`.

| scale | data | expect | cost | command |
|---|---|---|---|---|
| quick | generated, 16 classes, 32 pixels | see findings.md | see findings.md | `dvc repro motionrgbd` |
| real | NvGesture, IsoGD by folder | fusion > best single | hours, 1 GPU (not run) | `dvc exp run -S motionrgbd=real ...` |
| paper | IsoGD, NvGesture ... | 66.8 IsoGD RGB-D, published | days, GPUs | `dvc exp run -S motionrgbd=paper ...` |
"""
