"""Compiled loops over columns (numba) and hashing. Pure: numbers in, numbers out."""
