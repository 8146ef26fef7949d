"""Side-by-side measurements against peers, as ratios. Not part of the test suite; `python -m benchmarks` runs them."""
