"""Detectors of single streams: sensors, nodes against their pool, pools against their past.

`causes` looks for illness with a mechanism it knows; these notice what nobody thought of. Each
turns a stream into a score, and `episodes` turns scores into anomalies that open and close once.
"""
