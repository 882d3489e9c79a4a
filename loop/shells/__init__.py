"""Everything that does I/O for a component: clock, broker, live, transactional and simulated runs.

A shell moves bytes and keeps promises about order and durability; it never looks into a message
beyond the fleet it names.
"""
