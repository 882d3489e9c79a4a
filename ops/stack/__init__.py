"""The local stack: Kafka, the stores and every service as supervised processes on one machine."""
