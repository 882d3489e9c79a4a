"""The digital twin of a GPU cloud: a fleet that behaves, on its own clock and from one seed.

It speaks the messages of a real fleet and obeys the same port (`gpuloop.schemas.fleet`), so the
loop cannot tell it from one. It knows nothing of policies, Kafka or wall time.
"""
