"""Motion forecasters, one file each, with their sites and masks."""
