"""Nexus: share one GPU between prefill and decode of LLM serving, from outside vLLM."""

__version__ = "0.2.0"
