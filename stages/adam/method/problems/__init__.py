"""Test problems with exact gradients and known constants."""
