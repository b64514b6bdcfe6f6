"""How rules, sigmas and files run inside ComfyUI."""
