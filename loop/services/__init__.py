"""One module with a `main` per process: here a component meets its shell, clock and settings."""
