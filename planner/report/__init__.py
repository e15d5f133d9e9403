"""A plan for people: the verdict, the page, another server's configuration."""
