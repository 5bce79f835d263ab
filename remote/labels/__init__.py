"""What Neuronpedia says of features: fetched when asked for, and kept."""
