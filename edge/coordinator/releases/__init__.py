"""What is pushed: artifacts, releases, and who should run them."""
