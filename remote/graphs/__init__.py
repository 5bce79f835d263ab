"""Graph documents on this machine: read, checked, and what is in them named."""
