"""What the user brought becomes what we work on: models, data, tasks."""
