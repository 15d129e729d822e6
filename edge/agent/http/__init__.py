"""The local HTTP interface of an agent."""
