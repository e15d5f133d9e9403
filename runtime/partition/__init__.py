"""SM partitions: green contexts, MPS, and CPU cores in their place."""
