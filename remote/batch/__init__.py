"""Many prompts: a file of them in, a folder of graphs and an index out."""
