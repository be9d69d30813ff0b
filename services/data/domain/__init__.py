"""Pure rules of the data service: names, sessions, cleaning of chains, and the simulated market."""
