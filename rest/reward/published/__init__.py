"""Published rewards as they are: MetricX and CometKiwi."""
