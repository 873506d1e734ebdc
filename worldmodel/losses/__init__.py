"""What the world model is trained by."""
