"""What is made of graphs' files without a worker: comparisons, other forms."""
