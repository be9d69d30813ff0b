"""The paper venue: `adapter` is the door, `tables` and `rows` keep it in Postgres, `feed` tells what happens.

How it trades is in domain: `desk`, `matching`, `margin`, `settlement`.
"""
