"""What runs around the server: its balancer, dashboards, manifests, and the drills that break them on purpose."""
