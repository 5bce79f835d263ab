"""The demo model: a tiny trilingual language model, its transcoders, and what trained them."""
