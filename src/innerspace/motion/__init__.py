"""Motion forecasting: scenes, words for motion, forecasters and their metrics."""
