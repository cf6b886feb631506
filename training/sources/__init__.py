"""Where real images lie: folders, tar shards, tables, arrays. Each gives any image by its number (training/images.py)."""
