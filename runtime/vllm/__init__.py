"""What plugs into vLLM from outside."""
