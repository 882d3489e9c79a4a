"""Run a GPU cloud by itself: observe, reason, act, evaluate over Kafka."""

__version__ = "0.1.0"
