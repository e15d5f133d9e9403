"""Head-to-head runs: workloads, systems, vLLM's own client, metrics, results."""
