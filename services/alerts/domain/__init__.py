"""The rules of alerts: what matches, what an alert shows, when it rings again, how it reads. Pure."""
