"""What the papers share: how a stage runs (`stage`) and how results become a report (`report`)."""
