"""Controllers of others, built to their documentation, for the learned policies to be measured by.

Each decides the total of a pool's nodes and nothing else: purchase mix, price and migration are the
same for all of them (`controller.capacity_action`), so that a comparison is one of capacity only.
`catalogue.CONTROLLERS` lists them by name; docs/baselines.md says where they differ from their
originals. They see a `PoolBatch` as the rule does, and keep what they remember in arrays with a row
per pool. No clock, no randomness; fleet time is the batch's.
"""
