"""What Prometheus reads, and what tries it."""
