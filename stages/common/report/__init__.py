"""From tidy results to what people read: tables, claims with verdicts, figures, one HTML page."""
