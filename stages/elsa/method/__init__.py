"""ELSA as plain PyTorch; read taps.py, aggregate.py and attention.py in this order, then mixers.py and swin.py."""
