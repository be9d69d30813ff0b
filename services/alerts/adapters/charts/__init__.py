"""Pictures of charts: drawn by a child process (draw.py), which artist.py starts, asks and ends."""
