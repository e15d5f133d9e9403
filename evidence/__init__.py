"""What proves the claims of docs/: run from a clone, and not installed."""
