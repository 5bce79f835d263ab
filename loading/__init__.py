"""From names and files to a replacement model in memory: sources, transcoders, engines."""
