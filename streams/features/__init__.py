"""Features of pools and job classes: what they mean, how they are kept, how they are told.

`definitions` says what every number is and what it comes from, `windows` keeps what rolling and
lagged ones need in bounded memory, `compute` makes one vector of one subject at one tick, and
`fold` does so for every pool state, live and over a recording alike.
"""
