"""`openbell`: what an administrator does about a running Openbell, from a terminal, through the gateway's API."""
