"""`drqn-dist scale`: measures how a run scales with its actors, and predicts other machines.

Light to import: scipy and torch come with the modules that need them.
"""
