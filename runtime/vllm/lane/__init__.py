"""The prefill lane: prompts computed beside decode steps."""
