"""Guidance for flow matching models: one file a method, and the stack that orders them."""
