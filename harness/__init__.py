"""The real ComfyUI for the demo, the tests and the benchmarks."""
