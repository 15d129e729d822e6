"""Real samples from files, folders and the user's own code, read as they are needed."""
