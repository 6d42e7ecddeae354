"""A Novel Convergence Analysis for Algorithms of the Adam Family. Guo et al., NeurIPS OPT workshop 2021, arXiv 2112.03459.

Idea: one short argument covers every Adam-style method. It converges to a stationary point of a smooth non-convex
function if the first moment's beta is large or increases, and the scale 1/(sqrt(u)+G0) stays between two positive
constants, however u is made. The moving average's error shrinks with 1 - beta, which also gives single-loop methods for
min-max, compositional and bilevel problems. There are no accuracies to match: this is a laboratory that checks
inequalities, exponents and controls.

Stages: prepare -> rate (E1-E3), skewed (E4), counterexamples (E5), digits (E6), minmax (E7), compositional (E8),
bilevel (E9), cifar10 -> evaluate -> report. All seeds and settings of an experiment advance together as one batch.
Method: `method/` (start with recursion.py and theorem.py). Your own network: `method/adam_family.py`. Your own variant:
a rule in `method/recursion.py`, then its name in `params.py` and under `rate.members`.

| scale | problems | expect | cost | command |
|---|---|---|---|---|
| quick | generated, digits | exponents near -1/2, bounds hold | 1.5 min, 2 cores | `dvc repro adam` |
| real | and CIFAR-10 | AdaBound 94.9 %, Adam 92.3 % (published) | GPU-days | `dvc exp run -S adam=real adam` |
| paper | as real, more seeds | the same | several GPUs | `dvc exp run -S adam=paper adam` |
"""
