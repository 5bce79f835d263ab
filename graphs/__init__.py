"""Graphs as callers get them: the document, and the attributions kept for the next request."""
