"""Tables and queries of the schema `payment`."""
