"""One file for each ``wb`` command; a new file here is a new command."""
