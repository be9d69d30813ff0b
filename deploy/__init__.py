"""What it takes to run Openbell: one machine (local), containers, Kubernetes, dashboards."""
