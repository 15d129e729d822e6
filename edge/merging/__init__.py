"""What a fleet knows: sums of statistics, means of changes, screening, privacy. Pure functions over contributions."""
