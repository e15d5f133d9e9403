"""The committed results as Markdown tables, beside what the simulator says."""
