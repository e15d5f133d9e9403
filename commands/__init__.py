"""The subcommands of ``nexus``: parse, call, print."""
