"""What one device learns from labelled features: numpy only.

Executes no graph, opens no file and reads no clock: the SGD learner is given a `TrainStep`, times come in as ``now_s``
and randomness as `Draws`.
"""
