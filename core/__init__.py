"""What the planner, the runtime and the profiler share: documents, the plan, policy and ranking."""
