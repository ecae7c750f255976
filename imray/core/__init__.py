"""The heart: numbering, duplicates, routing, reordering. Pure: no Ray, no I/O, no asyncio, no clock."""
