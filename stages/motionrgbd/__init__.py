"""MotionRGBD: decoupling and recoupling spatiotemporal representation for RGB-D motion recognition. Zhou et al., CVPR 2022.
"""
