"""Plain tensor operations; `reference` has the definitions."""
