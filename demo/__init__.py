"""The demo: the whole main job on a small model, on the machine at hand."""
