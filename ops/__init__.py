"""How it is run: the command line, the local stack, containers and monitoring."""
