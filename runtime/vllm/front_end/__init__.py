"""What runs in vLLM's API server processes, and before them."""
