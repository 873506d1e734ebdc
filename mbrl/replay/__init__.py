"""Real experience: episode files, the store that keeps them, and random clips of them."""
