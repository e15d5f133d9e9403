"""The profiler under MPS: two engines beside each other."""
