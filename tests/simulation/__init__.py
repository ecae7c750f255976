"""Seeded schedules of a home shard, its sub-topics, gateways and clients over a simulated network and disk."""
