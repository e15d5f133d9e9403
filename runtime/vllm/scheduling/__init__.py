"""vLLM's scheduler with the plan's batches and order."""
