"""Reason: what should be done, what comes next and why things happened.

Nothing here acts or knows who will. Policies are functions of `PoolBatch`; forecasts and causes are
components of their own.
"""
