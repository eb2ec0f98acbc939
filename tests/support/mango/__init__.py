"""A model of selectors, and documents and selectors made at random."""
