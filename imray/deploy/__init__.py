"""All that imports ray: actors, where they run, and how they find each other."""
