"""The same job done by others: newest numbers of each node from samples on Kafka, kept in state."""
