"""A tiny Klein family that the demo, the tests and the benchmarks run on."""
