"""Evaluate: what every action did, in money, and a record of it that cannot be changed unseen."""
