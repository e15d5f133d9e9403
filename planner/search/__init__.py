"""From a latency model, bounds and a workload to the table."""
