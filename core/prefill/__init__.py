"""Which prompt runs first, who keeps a share, and who is refused: the same for server and simulator."""
