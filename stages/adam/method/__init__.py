"""The Adam family, its theorem and its extensions: plain torch."""
