"""Seeded schedules of a home shard, its partitions, gateways and clients over a simulated network and disk."""
