"""Plain tensor operations: the definitions (`reference`) and the linear-time means (`means`)."""
