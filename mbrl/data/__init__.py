"""Data sets of videos and episodes: folders of episode files, clips of them, and ways to get them."""
