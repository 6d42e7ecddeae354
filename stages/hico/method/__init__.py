"""HiCo's method as plain torch: which clips, which losses, which networks, which optimiser.

Start with `losses.py`. `clip_sampling.py` draws the clips of a video, `heads.py` the embeddings and the topic
predictor, `s3dg.py`, `residual.py` and `s3d_tiny.py` are the encoders, `lars.py` and `learning_rate.py` the
optimisation.
"""
