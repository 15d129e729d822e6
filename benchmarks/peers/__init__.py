"""Other converters, one file each, so that they can be run beside ours on the same networks and data.

A peer is a module with `DISTRIBUTIONS` (what must be installed, by its name in a package index), `INSTALL` (how),
`VARIANTS` (ways to convert), `SUFFIX` of its files, `convert` and `open_model`; its libraries are imported inside these
two functions, which run in a process of their own under the peer's own Python, see `benchmarks.peers.process`.
"""
