"""Speed and memory of encoders and cells, side by side: what `scripts/benchmark.py` is made of."""
