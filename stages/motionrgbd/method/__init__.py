"""The method of MotionRGBD: plain torch, one idea a file (start with unimodal.py and capf.py)."""
