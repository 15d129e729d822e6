"""Commands: the only place that builds a transport and hands it in."""
