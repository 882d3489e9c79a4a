"""Act: what may be done, in which order, and the making and carrying out of commands.

Nothing here knows why something is wished for. The executor shares no code with the envelope: what
one lets through by mistake the other still refuses.
"""
