"""FEDformer: Frequency Enhanced Decomposed Transformer. Zhou et al., ICML 2022, arXiv 2201.12740.

Idea: an encoder and decoder with a seasonal-trend decomposition inside every layer, where a few selected
frequencies (Fourier, -f, or per level of a multiwavelet decomposition, -w) stand in for attention; the cost
is linear in the length.

Stages: prepare -> train (models x seeds; data sets and horizons inside) -> evaluate -> report.
Method: `method/` (start with trunk.py). Your own CSV: `forecast.py`. Authors' weights: `official.py`.
Two variants: `official`, the released code with all it does differently from the text; `paper`, the text.

| scale | data, width | expect | cost | `dvc exp run -S … fedformer` |
|---|---|---|---|---|
| quick | a generated series; 32 | -f near Autoformer, encoder idle | minutes, 2 cores | `fedformer=quick` |
| real | ETTh, Exchange, ILI; 512 | -f as published, within 10 %, ILI 25 % | a GPU day | `fedformer=real` |
| paper | all six; 512 | the paper's tables | 8 GPUs, days | `fedformer=paper` |

What a CPU can do of `real`: the command lines at the head of `conf/fedformer/real.yaml`.
"""
