"""The contracts: messages, topics, codecs and the component and fleet protocols.

Everything else imports from here and this package imports nothing of ours, so a change that
breaks a reader shows up as a change to these files and nowhere else.
"""
