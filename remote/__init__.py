"""ComfyUI servers on several machines."""
