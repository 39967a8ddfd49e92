"""What belongs to the process of a command."""
