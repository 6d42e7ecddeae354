"""The method, no files and no tracking. Read structure, cost, entropy, spaces and evolution in this order."""
