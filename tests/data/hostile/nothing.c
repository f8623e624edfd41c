/* Exports nothing that allocates. */
int nothing_here;
