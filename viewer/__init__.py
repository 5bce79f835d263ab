"""Graphs in circuit-tracer's viewer, in this machine's browser."""
