"""Side-by-side measurements: `python -m benchmarks.<name>`, or `python -m benchmarks` for all of them."""
