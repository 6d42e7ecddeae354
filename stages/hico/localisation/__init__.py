"""Temporal localisation: the boundary-matching network, its proposals, and how well segments match."""
