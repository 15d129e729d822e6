"""Small networks that are trained here on scikit-learn's digits, so that conversions are measured on real weights.

Every network file stands alone: ``edge-convert model.pth --arch benchmarks/networks/mlp.py:MLP`` needs nothing else.
"""
