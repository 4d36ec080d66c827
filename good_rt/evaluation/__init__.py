"""How well scores tell in-distribution from out-of-distribution images: metrics, results,
report."""
