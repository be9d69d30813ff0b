"""The speed of the messaging runtime."""
