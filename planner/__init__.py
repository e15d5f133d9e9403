"""The planner: from a measured profile to a lookup table, with no GPU."""
