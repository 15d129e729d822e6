"""Which candidate is shipped: built, compared, measured."""
