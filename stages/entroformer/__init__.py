"""Entroformer: A Transformer-based Entropy Model for Learned Image Compression. Qian et al., ICLR 2022, arXiv 2202.05492."""
