"""Requests: traces in known formats, or drawn from means."""
