"""What jobs read: networks, scenes, text, and how they are split."""
