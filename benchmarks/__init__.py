"""Benchmarks, one module a topic, each with a `main(arguments)`; `tasks.py bench` runs them."""
