"""The dashboard: pages that the coordinator serves, read from its database, and what people may do on them."""
