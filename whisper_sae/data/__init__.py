"""Audio, transcripts and alignments, read into one table of clips. No torch."""
