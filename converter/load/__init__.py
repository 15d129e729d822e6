"""From a file to a model that runs: one module for each kind of file, and one for what the inputs look like."""
