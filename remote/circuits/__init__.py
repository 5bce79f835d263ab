"""What a set of features is worth: experiments on a worker, and chance beside them."""
