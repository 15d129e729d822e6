"""What everything is compared with, how near it is, and what holds."""
