"""What can go wrong around the stack that a person can do something about."""


class StackError(RuntimeError):
    """The stack cannot be started or reached; the message is one line for the person who asked."""
