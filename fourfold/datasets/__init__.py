"""A user's data become examples, splits and a task with its metric."""
