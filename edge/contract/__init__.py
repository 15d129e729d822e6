"""What everybody agrees on: bundles and manifests, device profiles, tensor specs, digests, errors.

Imports the standard library, numpy and safetensors' numpy reader only. It executes nothing and opens no network.
"""
