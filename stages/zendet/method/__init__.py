"""The method: plain Python and torch, no files, no tracking. Read structure, cost, entropy, spaces, evolution in this order."""
