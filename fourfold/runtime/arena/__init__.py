"""A captured program carried out in one buffer: every intermediate stands at its planned offset, in the planned order."""
