"""What is printed on a terminal: outputs, progress, and texts from elsewhere made safe."""
