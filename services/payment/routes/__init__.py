"""Door 2: the HTTP routes of payment, all below /pay."""
