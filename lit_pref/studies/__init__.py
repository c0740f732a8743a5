"""Studies: ablations over named axes and seeds, trained as ordinary runs by any number of workers, and their tables."""
