"""Entroformer: A Transformer-based Entropy Model for Learned Image Compression. Qian et al., ICLR 2022, arXiv 2202.05492.

Idea: a learned codec writes integers; what a file costs is how well each is predicted. Here a transformer predicts
them, from side information and from what is decoded already, with attention to the k best keys only and relative
positions in a diamond. Its parallel form decodes any picture in two network passes: half of a checkerboard, then
the other half.

Stages: prepare -> pretrain (transforms and Entroformer, random masks) -> train (families of entropy models x seeds,
on fixed and on learned latents) -> evaluate (rates, real files) -> report. Method: `method/` (start with codec.py and
attention.py). Files: `file_format.py`, `encode.py`, `decode.py`. Authors' weights: `official.py`.

| scale | data | networks | expect | cost | command |
|---|---|---|---|---|---|
| quick | dead leaves, generated | width 32 | context below 5x5 convolution | 5.3 min, 2 cores | `dvc repro entroformer` |
| real | BSDS500, Kodak | width 96, 192 | below CNN on fixed latents | half a day, 1 GPU | `-S entroformer=real` |
| paper | the same photographs | 45 M parameters | -15 % bits (published) | weeks, 8 GPUs | `-S entroformer=paper` |

    python -m stages.entroformer.encode image.png out.enc --model codec.safetensors
    python -m stages.entroformer.decode out.enc image.png --model codec.safetensors
"""
