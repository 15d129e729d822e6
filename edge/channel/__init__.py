"""The channel between a device and its coordinator: topics, messages, chunked transfer, and the broker's door.

Everything here is sans-io (values in, values or effects out; the time is an argument) except two files: `mqtt` opens
paho and a thread, and `memory` is the in-process broker for tests and simulations. The broker is never trusted as a
store: what must survive is re-asserted by the end that wrote it to its own disk.
"""
