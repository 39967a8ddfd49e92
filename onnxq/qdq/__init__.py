"""Q/DQ placement: which nodes run on integers, where Q/DQ pairs stand, and their insertion."""
