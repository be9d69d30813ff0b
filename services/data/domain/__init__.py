"""Pure rules of the data service: names, sessions, cleaning of chains, pacing, and the simulated market."""
