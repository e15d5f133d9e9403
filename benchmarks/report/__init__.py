"""Measured results side by side, and their HTML page."""
