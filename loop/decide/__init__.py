"""Decide: one decision per pool and tick, from what is known, within what is granted."""
