"""What the command line prints and reads."""
