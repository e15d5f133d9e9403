"""The profiler: what to measure, and measuring it in the worker that serves."""
