"""Sinks: what messages look like as rows of tables that people query.

Pure: which table a message belongs to and what its columns hold. No store is spoken to here, and
none is known; `gpuloop.loop.shells` writes the rows.
"""
