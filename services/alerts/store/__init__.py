"""Tables and queries of the schema `alerts`.

users, watched      what the gateway told; either may come first
rules, channels     what users set here; an address is enabled when its reader has confirmed it
confirmations       the mails that ask for that, claimed rows
contracts           the unusual contracts of a (symbol, session), each once
quotes              of such symbols and of those that are watched, one a minute, for charts
alerts, deliveries  partitioned by the month of the session; deliveries are claimed rows (shared.work)
"""
