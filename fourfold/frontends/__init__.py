"""A user's model becomes a module we work on, a program and a graph."""
