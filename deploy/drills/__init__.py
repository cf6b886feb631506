"""Drills: parts of a running stack are broken on purpose while clients ask and order, and everything they get is counted."""
