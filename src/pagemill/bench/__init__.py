"""`pagemill bench`: load generators and what they report. Imported only by the command."""
