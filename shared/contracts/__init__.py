"""Events, commands and topics: the only place where services meet. One file for each owning service."""
