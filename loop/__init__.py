"""Evaluate, and the whole: the shells that run components, and what joins the packages.

Only `loop.services` lets the middle packages meet a shell and a clock; nothing below this package
knows that Kafka or wall time exist.
"""
