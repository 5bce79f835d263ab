"""Text and messages to tokens, and back."""
