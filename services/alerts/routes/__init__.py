"""Door 2, HTTP: a user's alerts, channels, rules and notices. Users reach only their own."""
