"""The ten papers, one folder each, and what they share (`stages.common`)."""
