"""The coordinator: registry of devices, store of what they said and learned, merging, releases, HTTP API.

It meets agents only in messages.
"""
