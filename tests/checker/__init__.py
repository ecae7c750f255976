"""The checker: recomputes the invariants I1 to I7 from nothing but what clients saw. Knows nothing of the engine."""
