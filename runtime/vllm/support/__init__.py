"""Which features of vLLM work beside a plan."""
