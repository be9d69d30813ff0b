"""Manifests for a cluster: what is the same for every service is made from deploy/services.py, the rest is written."""
