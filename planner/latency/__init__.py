"""A model of step times, fitted to a profile."""
