"""The runtime: applies a plan to every step of a vLLM server."""
