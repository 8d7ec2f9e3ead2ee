"""What a module is made of, and how it is rebuilt elsewhere."""
