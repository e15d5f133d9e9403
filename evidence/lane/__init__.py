"""Evidence about the prefill lane, gathered in real engines and servers."""
