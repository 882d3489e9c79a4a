"""The one kind of error that ends a process and needs no trace.

Its text is for a person: what is wrong, with which file or topic, and the way out. Whoever reports
it prints that text alone.
"""


class Explained(RuntimeError):
    """Ends a process for a reason that its text explains."""
