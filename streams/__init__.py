"""Observe: what the fleet says about itself, folded into the current belief.

Pure functions over telemetry; the Faust application and the `Observe` component both call them.
"""
