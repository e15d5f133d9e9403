"""Profiles: what was measured, how it is stored, and the measured ones that ship."""
