"""Documents, the files that commands write, and words on the terminal."""
