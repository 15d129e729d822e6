"""A site: this coordinator as a device of the coordinator above it."""
