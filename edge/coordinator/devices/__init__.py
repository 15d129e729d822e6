"""Who is in the fleet, and how devices join and leave."""
