"""Learning: experience from topics, training, the check a policy must pass, its registry.

Only this package and the learner process import torch, and only where they train.
"""
